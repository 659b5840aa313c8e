//! What differs between two JSON documents of this program: predictions, replays, verdicts, reports, or evidence
//! taken apart.
//!
//! Objects are aligned by key, lists of named things (checks, fields, registers) by name, and events by their
//! digests, register by register, so that one event more does not make all later ones differ. Documents of
//! different kinds are compared in what both have: registers and events.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

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
    let same_kind = a.get("schema") == b.get("schema");
    let view = |document: &Value| {
        if same_kind {
            plain(document)
        } else {
            registers(document)
        }
    };
    compare(&mut rows, "", &view(a), &view(b));
    compare_events(&mut rows, &events(a), &events(b));
    Diff {
        schema: DIFF_SCHEMA,
        same: rows.is_empty(),
        rows,
    }
}

/// The document without its events, which are aligned on their own.
fn plain(document: &Value) -> Value {
    let mut document = document.clone();
    for holder in [String::new(), "/prediction".to_owned()] {
        if let Some(Value::Object(map)) = document.pointer_mut(&holder) {
            map.remove("events");
        }
    }
    document
}

/// The registers of any document that has some, by their lower-case names.
fn registers(document: &Value) -> Value {
    const NAMES: [&str; 5] = ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"];
    let holders = [
        "/registers",
        "/prediction",
        "/prediction/registers",
        "/claims",
        "",
    ];
    let mut found = Map::new();
    for holder in holders.iter().filter_map(|pointer| document.pointer(pointer)) {
        for name in NAMES {
            if let Some(value @ Value::String(_)) = holder.get(name) {
                found.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
    for field in document["fields"].as_array().into_iter().flatten() {
        let name = field["name"]
            .as_str()
            .and_then(|name| name.rsplit('.').next())
            .unwrap_or_default();
        if NAMES.contains(&name) {
            found.entry(name).or_insert_with(|| field["value"].clone());
        }
    }
    Value::Object(found)
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

/// Events by register, in order.
fn events(document: &Value) -> BTreeMap<String, Vec<Event>> {
    let mut registers: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    let list = document
        .get("events")
        .or_else(|| document.pointer("/prediction/events"));
    for event in list.and_then(Value::as_array).into_iter().flatten() {
        let field = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let name = match event.get("name") {
            Some(_) => field("name"),
            None => format!("{} {}", field("type_name"), field("description")),
        };
        let event = Event {
            digest: field("digest"),
            name: name.trim_end().to_owned(),
        };
        registers.entry(field("register")).or_default().push(event);
    }
    registers
}

fn compare_events(
    rows: &mut Vec<DiffRow>,
    a: &BTreeMap<String, Vec<Event>>,
    b: &BTreeMap<String, Vec<Event>>,
) {
    // A document without events says nothing about them.
    if a.is_empty() || b.is_empty() {
        return;
    }
    let mut names: Vec<_> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let list = |events: &BTreeMap<String, Vec<Event>>| events.get(name).cloned().unwrap_or_default();
        for (position, a, b) in align(&list(a), &list(b)) {
            let shown = |event: Option<Event>| event.map(|event| format!("{}  {}", event.digest, event.name));
            rows.push(row(&format!("events.{name}[{position}]"), shown(a), shown(b)));
        }
    }
}

/// Lists longer than this are compared position by position: aligning takes the product of the lengths.
const ALIGNED_MAX: usize = 2048;

/// Pairs what differs between two lists, after the longest common subsequence of digests is taken out.
fn align(a: &[Event], b: &[Event]) -> Vec<(usize, Option<Event>, Option<Event>)> {
    if a.len().max(b.len()) > ALIGNED_MAX {
        let pairs = (0..a.len().max(b.len())).map(|at| (at, a.get(at).cloned(), b.get(at).cloned()));
        return pairs
            .filter(|(_, a, b)| a.as_ref().map(|a| &a.digest) != b.as_ref().map(|b| &b.digest))
            .collect();
    }
    let common = common_lengths(a, b);
    let (mut i, mut j) = (0, 0);
    let mut differing = Vec::new();
    while i < a.len() || j < b.len() {
        let (here_a, here_b) = (a.get(i), b.get(j));
        if let (Some(x), Some(y)) = (here_a, here_b) {
            if x.digest == y.digest {
                (i, j) = (i + 1, j + 1);
                continue;
            }
            // Neither list's event is in the other's rest of the common sequence: one took the other's place.
            if common[i + 1][j + 1] == common[i][j] {
                differing.push((i, Some(x.clone()), Some(y.clone())));
                (i, j) = (i + 1, j + 1);
                continue;
            }
        }
        if here_b.is_none() || (here_a.is_some() && common[i + 1][j] >= common[i][j + 1]) {
            differing.push((i, here_a.cloned(), None));
            i += 1;
        } else {
            differing.push((i, None, here_b.cloned()));
            j += 1;
        }
    }
    differing
}

/// `[i][j]`: how long the longest common subsequence of `a[i..]` and `b[j..]` is.
fn common_lengths(a: &[Event], b: &[Event]) -> Vec<Vec<u16>> {
    let mut lengths = vec![vec![0u16; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            lengths[i][j] = if a[i].digest == b[j].digest {
                lengths[i + 1][j + 1] + 1
            } else {
                lengths[i + 1][j].max(lengths[i][j + 1])
            };
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;
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
        check(&[], &["1"], &[]);
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
        let prediction = json!({"schema": "cocoon.predict/1", "prediction": {"rtmr0": "aa", "rtmr1": "bb"}});
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
