//! What differs between two JSON documents of this program: predictions, replays, verdicts, reports, or evidence
//! taken apart.
//!
//! Objects are aligned by key, lists of named things (checks, fields, registers) by name, and events by their
//! digests, register by register, so that one event more does not make all later ones differ. Documents of
//! different kinds are compared in what both have: registers and events.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::alignment::{Difference, align};

/// The version of the JSON form.
pub const DIFF_SCHEMA: &str = "cocoon.diff/1";

/// Two documents, compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// [`DIFF_SCHEMA`].
    pub schema: &'static str,
    /// Whether there are no rows.
    pub same: bool,
    /// What differs, in the order of the first document's keys.
    pub rows: Vec<DiffRow>,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffRow {
    /// Where, with dots between levels.
    pub path: String,
    /// In the first document; `None` if it is not there.
    pub a: Option<String>,
    /// In the second.
    pub b: Option<String>,
}

/// Compares two documents.
pub fn diff(a: &Value, b: &Value) -> Diff {
    let mut rows = Vec::new();
    let mut events_differ = |name: &str| {
        compare_events(&mut rows, name, &events(a, name), &events(b, name));
    };
    if a.get("schema") == b.get("schema") {
        REGISTERS.iter().chain(&PCRS).for_each(|name| events_differ(name));
        let mut others = Vec::new();
        compare(&mut others, "", &without_events(a), &without_events(b));
        others.append(&mut rows);
        rows = others;
    } else {
        compare_registers(&mut rows, a, b);
    }
    Diff {
        schema: DIFF_SCHEMA,
        same: rows.is_empty(),
        rows,
    }
}

const REGISTERS: [&str; 5] = ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"];
const PCRS: [&str; 24] = [
    "pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr5", "pcr6", "pcr7", "pcr8", "pcr9", "pcr10", "pcr11",
    "pcr12", "pcr13", "pcr14", "pcr15", "pcr16", "pcr17", "pcr18", "pcr19", "pcr20", "pcr21", "pcr22",
    "pcr23",
];

/// Documents of two kinds: the registers that both have, and the events of those that differ.
fn compare_registers(rows: &mut Vec<DiffRow>, a: &Value, b: &Value) {
    for name in REGISTERS {
        let (values_a, values_b) = (values(a, name), values(b, name));
        let agree = values_a.iter().any(|value| values_b.contains(value));
        if agree || values_a.is_empty() || values_b.is_empty() {
            continue;
        }
        rows.push(row(
            name,
            Some(values_a.join(" or ")),
            Some(values_b.join(" or ")),
        ));
        compare_events(rows, name, &events(a, name), &events(b, name));
    }
}

/// The legitimate values of a register: one, but for a prediction that leaves something open.
fn values(document: &Value, name: &str) -> Vec<String> {
    let holders = ["/registers", "/claims", ""]
        .iter()
        .filter_map(|pointer| document.pointer(pointer));
    for holder in holders {
        match holder.get(name) {
            Some(Value::String(value)) => return vec![value.clone()],
            Some(Value::Array(alternatives)) => {
                let values = alternatives
                    .iter()
                    .filter_map(|alternative| alternative["value"].as_str());
                return values.map(str::to_owned).collect();
            }
            _ => {}
        }
    }
    let fields = document["fields"].as_array().into_iter().flatten();
    let named = fields.filter(|field| {
        field["name"]
            .as_str()
            .is_some_and(|path| path.rsplit('.').next() == Some(name))
    });
    named
        .filter_map(|field| field["value"].as_str())
        .map(str::to_owned)
        .take(1)
        .collect()
}

/// The document without its events, which are aligned on their own.
fn without_events(document: &Value) -> Value {
    let mut document = document.clone();
    if let Value::Object(map) = &mut document {
        map.remove("events");
    }
    if let Some(Value::Object(registers)) = document.get_mut("registers") {
        for alternatives in registers.values_mut().filter_map(Value::as_array_mut).flatten() {
            if let Value::Object(alternative) = alternatives {
                alternative.remove("events");
            }
        }
    }
    document
}

fn compare(rows: &mut Vec<DiffRow>, path: &str, a: &Value, b: &Value) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => compare_objects(rows, path, a, b),
        (Value::Array(a), Value::Array(b)) => {
            compare_objects(rows, path, &by_name(a), &by_name(b));
        }
        (a, b) if a == b => {}
        (a, b) => rows.push(row(path, text(a), text(b))),
    }
}

fn compare_objects(rows: &mut Vec<DiffRow>, path: &str, a: &Map<String, Value>, b: &Map<String, Value>) {
    let join = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    for (key, value) in a {
        match b.get(key) {
            Some(other) => compare(rows, &join(key), value, other),
            None => rows.push(row(&join(key), text(value), None)),
        }
    }
    for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
        rows.push(row(&join(key), None, text(value)));
    }
}

/// A list as an object: by what names its items, or by position if that is missing or not unique.
fn by_name(items: &[Value]) -> Map<String, Value> {
    let key = |item: &Value| {
        let name = ["id", "name", "register"]
            .iter()
            .find_map(|key| item.get(key)?.as_str());
        name.map(str::to_owned)
    };
    let mut named = Map::new();
    for item in items {
        let Some(name) = key(item) else { break };
        let mut item = item.clone();
        if let Value::Object(fields) = &mut item {
            // Where a field stands follows from the lengths of those before it.
            fields.remove("offset");
        }
        named.insert(name, item);
    }
    if named.len() == items.len() {
        return named;
    }
    items
        .iter()
        .enumerate()
        .map(|(position, item)| (position.to_string(), item.clone()))
        .collect()
}

fn row(path: &str, a: Option<String>, b: Option<String>) -> DiffRow {
    DiffRow {
        path: path.to_owned(),
        a,
        b,
    }
}

fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

/// What identifies an event, and how it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    digest: String,
    name: String,
}

/// The events of one register, in order: from a log, or of a prediction's first alternative.
fn events(document: &Value, register: &str) -> Vec<Event> {
    let logged = document["events"].as_array().into_iter().flatten();
    let logged = logged.filter(|event| event["register"] == register && event["extended"] != false);
    let predicted = document["registers"][register][0]["events"]
        .as_array()
        .into_iter()
        .flatten();
    let shown = |event: &Value| {
        let field = |key: &str| event[key].as_str().unwrap_or_default();
        let type_name = event["type_name"].as_str().unwrap_or_else(|| field("type"));
        let name = event["description"].as_str().unwrap_or_else(|| field("name"));
        Event {
            digest: field("digest").to_owned(),
            name: format!("{type_name} {name}").trim().to_owned(),
        }
    };
    logged.chain(predicted).map(shown).collect()
}

fn compare_events(rows: &mut Vec<DiffRow>, register: &str, a: &[Event], b: &[Event]) {
    let same = |a: &Event, b: &Event| a.digest == b.digest;
    for Difference { position, a, b } in align(a, b, same) {
        let shown = |event: Option<&Event>| event.map(|event| format!("{}  {}", event.digest, event.name));
        rows.push(row(&format!("events.{register}[{position}]"), shown(a), shown(b)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alignment::ALIGNED_MAX;
    use serde_json::json;

    fn paths(a: &Value, b: &Value) -> Vec<String> {
        let diff = diff(a, b);
        assert_eq!(diff.same, diff.rows.is_empty());
        diff.rows.into_iter().map(|row| row.path).collect()
    }

    fn replay(digests: &[&str]) -> Value {
        let events = digests.iter().map(|digest| {
            json!({"register": "rtmr0", "type_name": "EV_SEPARATOR", "digest": digest, "value": "differs"})
        });
        json!({"schema": "cocoon.replay/1", "events": events.collect::<Vec<_>>()})
    }

    #[test]
    fn one_event_more_is_one_row() {
        let check = |a: &[&str], b: &[&str], rows: &[&str]| {
            assert_eq!(paths(&replay(a), &replay(b)), rows, "{a:?} {b:?}");
        };
        check(&["1", "2", "3"], &["1", "2", "3"], &[]);
        check(&["1", "2", "3"], &["1", "x", "2", "3"], &["events.rtmr0[1]"]);
        check(&["1", "2", "3"], &["1", "3"], &["events.rtmr0[1]"]);
        check(&["1", "2", "3"], &["1", "x", "3"], &["events.rtmr0[1]"]);
        check(&["1", "2"], &["2", "1"], &["events.rtmr0[0]", "events.rtmr0[2]"]);
        check(&[], &["1"], &["events.rtmr0[0]"]);
    }

    #[test]
    fn checks_are_aligned_by_name() {
        let verdict = |checks: Value| json!({"schema": "cocoon.verify/1", "checks": checks});
        let a = verdict(json!([{"id": "x", "status": "PASS"}, {"id": "y", "status": "PASS"}]));
        let b = verdict(json!([{"id": "y", "status": "FAIL"}, {"id": "x", "status": "PASS"}]));
        assert_eq!(paths(&a, &b), ["checks.y.status"]);
    }

    #[test]
    fn a_prediction_and_evidence_are_compared_by_register() {
        let alternatives = |values: [&str; 2]| values.map(|value| json!({"name": value, "value": value}));
        let prediction = json!({"schema": "cocoon.predict/1", "registers": {
            "rtmr0": alternatives(["xx", "aa"]), "rtmr1": alternatives(["bb", "dd"])}});
        let quote = json!({"schema": "cocoon.quote/1", "fields": [
            {"name": "body.rtmr0", "value": "aa"}, {"name": "body.rtmr1", "value": "cc"}]});
        assert_eq!(paths(&prediction, &quote), ["rtmr1"]);
    }

    #[test]
    fn very_long_lists_are_compared_by_position() {
        let long: Vec<String> = (0..ALIGNED_MAX + 1).map(|number| number.to_string()).collect();
        let mut long: Vec<&str> = long.iter().map(String::as_str).collect();
        let a = replay(&long);
        long[7] = "x";
        assert_eq!(paths(&a, &replay(&long)), ["events.rtmr0[7]"]);
    }
}
