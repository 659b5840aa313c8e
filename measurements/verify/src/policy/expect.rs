//! An expectation: which values of one register or attribute are accepted.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        self, IntoDeserializer as _, SeqAccess, Visitor,
        value::{MapAccessDeserializer, StrDeserializer},
    },
    ser::SerializeSeq as _,
};

/// How a policy spells out that nothing is expected.
pub const ANY_INSECURE: &str = "any-insecure";

/// What is accepted. In the file: one value, a list of values, a list of tables with `profile` and `value`, or
/// the word `any-insecure`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect<T> {
    /// Each of these, at least one.
    OneOf(Vec<Accepted<T>>),
    /// Not compared: the row is SKIP, and no guest is trusted on it.
    AnyInsecure,
}

/// One accepted value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted<T> {
    /// Where the value comes from, for example `qemu-9.2/ovmf-202505`; a match names it.
    pub profile: Option<String>,
    /// The value.
    pub value: T,
}

impl<T> Expect<T> {
    /// This value and no other.
    pub fn exact(value: T) -> Self {
        Self::one_of([value])
    }

    /// Each of these values.
    pub fn one_of(values: impl IntoIterator<Item = T>) -> Self {
        let accepted = values.into_iter().map(|value| Accepted { profile: None, value });
        Self::OneOf(accepted.collect())
    }

    /// Each of these values, with the profile that leads to it.
    pub fn by_profile<P: Into<String>>(values: impl IntoIterator<Item = (P, T)>) -> Self {
        let accepted = values.into_iter().map(|(profile, value)| Accepted {
            profile: Some(profile.into()),
            value,
        });
        Self::OneOf(accepted.collect())
    }

    /// The accepted values; none for [`Self::AnyInsecure`].
    pub fn values(&self) -> impl Iterator<Item = &T> {
        let accepted = match self {
            Self::OneOf(accepted) => accepted.as_slice(),
            Self::AnyInsecure => &[],
        };
        accepted.iter().map(|accepted| &accepted.value)
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::OneOf(accepted) if accepted.is_empty())
    }
}

/// How a value compares with an expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison<'a> {
    /// Accepted, by this profile if it has a name.
    Equal(Option<&'a str>),
    /// Not among the accepted values.
    Different,
    /// The policy does not compare it.
    NotCompared,
}

impl<T: PartialEq> Expect<T> {
    pub(crate) fn compare(&self, actual: &T) -> Comparison<'_> {
        let Self::OneOf(accepted) = self else {
            return Comparison::NotCompared;
        };
        accepted
            .iter()
            .find(|accepted| accepted.value == *actual)
            .map_or(Comparison::Different, |accepted| {
                Comparison::Equal(accepted.profile.as_deref())
            })
    }
}

/// As reports print it; alternatives are joined with ` or `.
impl<T: fmt::Display> fmt::Display for Expect<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::OneOf(accepted) = self else {
            return f.write_str("anything (any-insecure)");
        };
        for (index, Accepted { profile, value }) in accepted.iter().enumerate() {
            let separator = if index == 0 { "" } else { " or " };
            write!(f, "{separator}{value}")?;
            if let Some(profile) = profile {
                write!(f, " ({profile})")?;
            }
        }
        Ok(())
    }
}

impl<T: Serialize> Serialize for Expect<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let accepted = match self {
            Self::OneOf(accepted) => accepted,
            Self::AnyInsecure => return serializer.serialize_str(ANY_INSECURE),
        };
        let mut list = serializer.serialize_seq(Some(accepted.len()))?;
        for accepted in accepted {
            match accepted.profile {
                Some(_) => list.serialize_element(accepted)?,
                None => list.serialize_element(&accepted.value)?,
            }
        }
        list.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Expect<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ExpectVisitor(PhantomData))
    }
}

struct ExpectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ExpectVisitor<T> {
    type Value = Expect<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value, a list of values, or {ANY_INSECURE:?}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        if text == ANY_INSECURE {
            return Ok(Expect::AnyInsecure);
        }
        T::deserialize(text.into_deserializer()).map(Expect::exact)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut accepted = Vec::new();
        while let Some(Item(item)) = list.next_element()? {
            accepted.push(item);
        }
        Ok(Expect::OneOf(accepted))
    }
}

struct Item<T>(Accepted<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor(PhantomData)).map(Self)
    }
}

struct ItemVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ItemVisitor<T> {
    type Value = Accepted<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, or a table with profile and value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let text: StrDeserializer<'_, E> = text.into_deserializer();
        T::deserialize(text).map(|value| Accepted { profile: None, value })
    }

    fn visit_map<A: de::MapAccess<'de>>(self, table: A) -> Result<Self::Value, A::Error> {
        Accepted::deserialize(MapAccessDeserializer::new(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct File {
        rule: Expect<String>,
    }

    fn read(rule: &str) -> Result<Expect<String>, toml::de::Error> {
        toml::from_str::<File>(&format!("rule = {rule}\n")).map(|file| file.rule)
    }

    #[test]
    fn every_form_of_the_file_round_trips() {
        let cases = [
            (r#""a""#, Expect::exact("a".to_owned())),
            (r#"["a", "b"]"#, Expect::one_of(["a".to_owned(), "b".to_owned()])),
            (
                r#"[{ profile = "p", value = "a" }]"#,
                Expect::by_profile([("p", "a".to_owned())]),
            ),
            (r#""any-insecure""#, Expect::AnyInsecure),
        ];
        for (text, expected) in cases {
            let rule = read(text).unwrap();
            assert_eq!(rule, expected, "{text}");
            let written = toml::to_string(&File { rule }).unwrap();
            assert_eq!(
                toml::from_str::<File>(&written).unwrap().rule,
                expected,
                "{written}"
            );
        }
    }

    #[test]
    fn other_forms_are_errors() {
        for text in [
            "1",
            "true",
            "[1]",
            r#"[{ profile = "p" }]"#,
            r#"[{ value = "a", profil = "p" }]"#,
            r#"{ value = "a" }"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_match_names_its_profile() {
        let rule = Expect::by_profile([("qemu-8", 1), ("qemu-9", 2)]);
        assert_eq!(rule.compare(&2), Comparison::Equal(Some("qemu-9")));
        assert_eq!(rule.compare(&3), Comparison::Different);
        assert_eq!(rule.to_string(), "1 (qemu-8) or 2 (qemu-9)");
        assert_eq!(Expect::<u8>::AnyInsecure.compare(&3), Comparison::NotCompared);
    }
}
