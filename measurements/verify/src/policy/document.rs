//! Rules about single fields of the launch document, for a policy that accepts more than one document.
//!
//! The document is JSON that the host wrote. Each of its values needs a rule: a field that no rule names is
//! refused, and so are repeated keys, whose meaning would depend on the reader.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Serialize,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};

use super::ANY_INSECURE;

/// A longer document is refused before it is parsed; guests refuse more than 8 KiB.
const DOCUMENT_BYTES_MAX: usize = 8 * 1024;

/// `[[events.launch_document_fields]]`: what one field may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FieldFile", into = "FieldFile")]
pub struct FieldRule {
    /// The names from the document's root, joined with dots; items of a list are numbered from 0.
    pub field: String,
    /// What is accepted there.
    pub accepts: FieldAccepts,
}

/// What a field may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldAccepts {
    /// An integer, both bounds included.
    Range {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// Each of these, at least one.
    OneOf(Vec<FieldValue>),
    /// Not compared: the row is SKIP, and no guest is trusted on it.
    AnyInsecure,
}

/// A value in the document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FieldValue {
    /// `true` or `false`.
    Bool(bool),
    /// A number without fraction.
    Integer(i64),
    /// A string.
    Text(String),
}

/// Why a rule is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "the rule for {field:?} must have either min and max with min <= max, a one_of that is not empty, or accept = {ANY_INSECURE:?}"
)]
struct FieldRuleError {
    field: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldFile {
    field: String,
    min: Option<i64>,
    max: Option<i64>,
    one_of: Option<Vec<FieldValue>>,
    accept: Option<String>,
}

impl TryFrom<FieldFile> for FieldRule {
    type Error = FieldRuleError;

    fn try_from(file: FieldFile) -> Result<Self, FieldRuleError> {
        let accepts = match (file.min, file.max, file.one_of, file.accept.as_deref()) {
            (Some(min), Some(max), None, None) if min <= max => FieldAccepts::Range { min, max },
            (None, None, Some(values), None) if !values.is_empty() => FieldAccepts::OneOf(values),
            (None, None, None, Some(ANY_INSECURE)) => FieldAccepts::AnyInsecure,
            _ => return Err(FieldRuleError { field: file.field }),
        };
        Ok(Self {
            field: file.field,
            accepts,
        })
    }
}

impl From<FieldRule> for FieldFile {
    fn from(FieldRule { field, accepts }: FieldRule) -> Self {
        let mut file = Self {
            field,
            min: None,
            max: None,
            one_of: None,
            accept: None,
        };
        match accepts {
            FieldAccepts::Range { min, max } => (file.min, file.max) = (Some(min), Some(max)),
            FieldAccepts::OneOf(values) => file.one_of = Some(values),
            FieldAccepts::AnyInsecure => file.accept = Some(ANY_INSECURE.to_owned()),
        }
        file
    }
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Text(value) => write!(f, "{value:?}"),
        }
    }
}

impl fmt::Display for FieldAccepts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { min, max } => write!(f, "{min} to {max}"),
            Self::OneOf(values) => {
                let values: Vec<_> = values.iter().map(ToString::to_string).collect();
                f.write_str(&values.join(" or "))
            }
            Self::AnyInsecure => f.write_str("anything (any-insecure)"),
        }
    }
}

impl FieldAccepts {
    fn holds(&self, value: &FieldValue) -> Option<bool> {
        match (self, value) {
            (Self::AnyInsecure, _) => None,
            (Self::Range { min, max }, FieldValue::Integer(value)) => Some((min..=max).contains(&value)),
            (Self::Range { .. }, _) => Some(false),
            (Self::OneOf(accepted), value) => Some(accepted.contains(value)),
        }
    }
}

/// One field of the document, judged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct JudgedField {
    pub(crate) field: String,
    pub(crate) expected: String,
    pub(crate) actual: String,
    /// `None` if the policy does not compare it.
    pub(crate) holds: Option<bool>,
}

/// Judges every value of the document and every rule; `Err` says why the document cannot be read.
pub(crate) fn judge_fields(rules: &[FieldRule], document: &[u8]) -> Result<Vec<JudgedField>, String> {
    let mut values = leaves(document)?;
    let mut judged: Vec<_> = rules
        .iter()
        .map(|FieldRule { field, accepts }| {
            let value = values.remove(field);
            JudgedField {
                field: field.clone(),
                expected: accepts.to_string(),
                actual: value
                    .as_ref()
                    .map_or_else(|| "missing".into(), ToString::to_string),
                holds: value.map_or(Some(false), |value| accepts.holds(&value)),
            }
        })
        .collect();
    judged.extend(values.into_iter().map(|(field, value)| JudgedField {
        field,
        expected: "no such field: the policy has no rule for it".into(),
        actual: value.to_string(),
        holds: Some(false),
    }));
    Ok(judged)
}

type Leaves = BTreeMap<String, FieldValue>;

fn leaves(document: &[u8]) -> Result<Leaves, String> {
    if document.len() > DOCUMENT_BYTES_MAX {
        return Err(format!(
            "{} bytes, at most {DOCUMENT_BYTES_MAX} are allowed",
            document.len()
        ));
    }
    let mut leaves = Leaves::new();
    let mut json = serde_json::Deserializer::from_slice(document);
    let seed = Branch {
        path: String::new(),
        leaves: &mut leaves,
    };
    seed.deserialize(&mut json)
        .and_then(|()| json.end())
        .map_err(|error| format!("not a JSON document as the policy needs it: {error}"))?;
    Ok(leaves)
}

/// Collects the values below `path`. The parser bounds the depth (128 levels).
struct Branch<'a> {
    path: String,
    leaves: &'a mut Leaves,
}

impl Branch<'_> {
    fn below(&mut self, name: &str) -> Branch<'_> {
        let path = match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        Branch {
            path,
            leaves: self.leaves,
        }
    }

    fn leaf<E: de::Error>(self, value: FieldValue) -> Result<(), E> {
        match self.leaves.insert(self.path.clone(), value) {
            None => Ok(()),
            Some(_) => Err(E::custom(format!("{:?} is there twice", self.path))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Branch<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Branch<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table, a list, a string, a whole number or a truth value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.leaf(FieldValue::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.leaf(FieldValue::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        let value = i64::try_from(value).map_err(|_| E::custom(format!("{value} is above 2^63 - 1")))?;
        self.leaf(FieldValue::Integer(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.leaf(FieldValue::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let mut index = 0_usize;
        while list.next_element_seed(self.below(&index.to_string()))?.is_some() {
            index += 1;
        }
        match index {
            0 => Err(de::Error::custom(format!("{:?} is an empty list", self.path))),
            _ => Ok(()),
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut table: A) -> Result<(), A::Error> {
        let mut names = std::collections::BTreeSet::new();
        while let Some(name) = table.next_key::<String>()? {
            if name.is_empty() || name.contains('.') {
                return Err(de::Error::custom(format!("{name:?} cannot be a name")));
            }
            table.next_value_seed(self.below(&name))?;
            if !names.insert(name.clone()) {
                return Err(de::Error::custom(format!("{name:?} is there twice")));
            }
        }
        match names.is_empty() {
            true => Err(de::Error::custom(format!("{:?} is an empty table", self.path))),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Vec<FieldRule>, toml::de::Error> {
        #[derive(Deserialize)]
        struct File {
            rule: Vec<FieldRule>,
        }
        toml::from_str::<File>(text).map(|file| file.rule)
    }

    const RULES: &str = r#"
        [[rule]]
        field = "limits.tokens"
        min = 1
        max = 4096
        [[rule]]
        field = "model"
        one_of = ["a", "b"]
    "#;

    #[track_caller]
    fn failing(document: &str) -> Vec<String> {
        let judged = judge_fields(&rules(RULES).unwrap(), document.as_bytes()).unwrap();
        judged
            .into_iter()
            .filter(|field| field.holds != Some(true))
            .map(|field| field.field)
            .collect()
    }

    #[test]
    fn values_in_range_and_set_hold() {
        assert!(failing(r#"{"model":"b","limits":{"tokens":4096}}"#).is_empty());
    }

    #[test]
    fn values_outside_of_range_and_set_are_named() {
        assert_eq!(failing(r#"{"model":"c","limits":{"tokens":4096}}"#), ["model"]);
        assert_eq!(
            failing(r#"{"model":"a","limits":{"tokens":4097}}"#),
            ["limits.tokens"]
        );
        assert_eq!(
            failing(r#"{"model":"a","limits":{"tokens":"7"}}"#),
            ["limits.tokens"]
        );
        assert_eq!(failing(r#"{"limits":{"tokens":7}}"#), ["model"]);
    }

    #[test]
    fn a_field_without_a_rule_is_refused() {
        let document = r#"{"model":"a","limits":{"tokens":7,"debug":true},"log":["x"]}"#;
        assert_eq!(failing(document), ["limits.debug", "log.0"]);
    }

    #[test]
    fn a_document_that_two_readers_could_read_differently_is_refused() {
        for document in [
            r#"{"model":"a","model":"b","limits":{"tokens":7}}"#,
            r#"{"model":"a","limits":{"tokens":7},"limits":{"tokens":8}}"#,
            r#"{"model":"a","limits.tokens":7}"#,
            r#"{"model":"a","limits":{"tokens":7},"x":{}}"#,
            r#"{"model":"a","limits":{"tokens":7},"x":null}"#,
            r#"{"model":"a","limits":{"tokens":7.5}}"#,
            r#"{"model":"a","limits":{"tokens":7}} {}"#,
            r#"{"model":"a","limits":{"tokens":18446744073709551615}}"#,
            "",
        ] {
            let judged = judge_fields(&rules(RULES).unwrap(), document.as_bytes());
            assert!(judged.is_err(), "{document}");
        }
        let deep = "[".repeat(4000) + &"]".repeat(4000);
        assert!(judge_fields(&rules(RULES).unwrap(), deep.as_bytes()).is_err());
    }

    #[test]
    fn a_rule_that_says_nothing_is_an_error() {
        for rule in [
            "",
            "min = 1",
            "max = 1",
            "min = 2\nmax = 1",
            "one_of = []",
            "accept = \"anything\"",
            "min = 1\nmax = 2\none_of = [1]",
            "minimum = 1\nmax = 2",
        ] {
            let text = format!("[[rule]]\nfield = \"x\"\n{rule}\n");
            assert!(rules(&text).is_err(), "{rule}");
        }
    }
}
