//! Chat templates: Jinja as transformers runs it, on minijinja. What differs is put right here: `tojson` is
//! Python's `json.dumps(ensure_ascii=False)`, `raise_exception` and `strftime_now` exist, and the blocks
//! `{% generation %}`, which only mark text for training, vanish.
//!
//! The template is measured with the model. What it is given comes from clients, so its errors, which can
//! quote that, go nowhere.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use cocoon_protocol::engine::Message;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Deserialize;
use serde_json::ser::Formatter;

use crate::config::{CONFIG_BYTES_MAX, ConfigError, read_bounded, read_json};

const NAME: &str = "chat";

/// Why there is no usable chat template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// Neither `chat_template.jinja` nor a `chat_template` in `tokenizer_config.json`.
    #[error(
        "there is no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json"
    )]
    Missing,
    /// The template cannot be compiled, or not even run on one plain message.
    #[error("the chat template does not work")]
    Broken(#[source] minijinja::Error),
}

/// The template refused a conversation, for its order of roles for example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's chat template does not accept this conversation")]
pub(crate) struct Refused;

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    begin: Option<String>,
    end: Option<String>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
}

/// One template, or several by name, of which `default` is the one for chats.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Plain(String),
    Described { content: String },
}

impl SpecialToken {
    fn into_text(self) -> String {
        match self {
            Self::Plain(text) | Self::Described { content: text } => text,
        }
    }
}

impl Templates {
    fn into_default(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(list) => list
                .into_iter()
                .find(|one| one.name == "default")
                .map(|one| one.template),
        }
    }
}

impl ChatTemplate {
    /// Reads it from a Hugging Face folder and tries it on one message.
    pub(crate) fn read(folder: &Path) -> Result<Self, TemplateError> {
        let config: TokenizerConfig = read_json(&folder.join("tokenizer_config.json"))?;
        let file = folder.join("chat_template.jinja");
        let source = if file.exists() {
            let bytes = read_bounded(&file, CONFIG_BYTES_MAX)?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        } else {
            config.chat_template.and_then(Templates::into_default)
        };
        let begin = config.bos_token.map(SpecialToken::into_text);
        let end = config.eos_token.map(SpecialToken::into_text);
        Self::new(&source.ok_or(TemplateError::Missing)?, begin, end)
    }

    fn new(source: &str, begin: Option<String>, end: Option<String>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // As transformers sets up its environment.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(TemplateError::Broken)?;
        let template = Self {
            environment,
            begin,
            end,
        };
        let trial = Message {
            role: "user".into(),
            content: "Hello".into(),
        };
        template.try_render(&[trial]).map_err(TemplateError::Broken)?;
        Ok(template)
    }

    /// The prompt's text, up to where the assistant begins to speak.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, Refused> {
        self.try_render(messages).map_err(|_| Refused)
    }

    fn try_render(&self, messages: &[Message]) -> Result<String, minijinja::Error> {
        self.environment.get_template(NAME)?.render(context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.begin.as_deref().unwrap_or_default(),
            eos_token => self.end.as_deref().unwrap_or_default(),
        })
    }
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `json.dumps(value, ensure_ascii=False)`: a blank behind commas and colons.
fn to_json(value: &Value) -> Result<Value, minijinja::Error> {
    struct Python;
    impl Formatter for Python {
        fn begin_array_value<W: ?Sized + std::io::Write>(
            &mut self,
            w: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + std::io::Write>(
            &mut self,
            w: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
            w.write_all(b": ")
        }
    }
    let failed = || minijinja::Error::new(ErrorKind::BadSerialization, "a value cannot be written as JSON");
    let mut json = vec![];
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Python);
    serde::Serialize::serialize(value, &mut serializer).map_err(|_| failed())?;
    String::from_utf8(json)
        .map(Value::from_safe_string)
        .map_err(|_| failed())
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    strftime(format, seconds)
        .ok_or_else(|| minijinja::Error::new(ErrorKind::InvalidOperation, "strftime_now: unknown directive"))
}

/// The directives that chat templates use, in UTC; `None` for others.
fn strftime(format: &str, unix_seconds: u64) -> Option<String> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (year, month, day) = civil(unix_seconds / 86_400);
    let name = MONTHS[month as usize - 1];
    let second = unix_seconds % 86_400;
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text += &match characters.next()? {
            'Y' => year.to_string(),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'B' => name.to_owned(),
            'b' => name[..3].to_owned(),
            'H' => format!("{:02}", second / 3600),
            'M' => format!("{:02}", second / 60 % 60),
            'S' => format!("{:02}", second % 60),
            '%' => "%".to_owned(),
            _ => return None,
        };
    }
    Some(text)
}

/// Year, month and day of a day since 1970 (Howard Hinnant: chrono-compatible low-level date algorithms,
/// `civil_from_days`, without dates before 1970).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// `{% generation %}` becomes `{% if true %}`, with its marks for blanks.
fn without_generation_blocks(source: &str) -> String {
    let (mut text, mut rest) = (String::new(), source);
    while let Some((before, block)) = rest.split_once("{%") {
        let Some((inner, after)) = block.split_once("%}") else {
            break;
        };
        let replaced = match inner.trim_matches(['-', '+']).trim() {
            "generation" => inner.replacen("generation", "if true", 1),
            "endgeneration" => inner.replacen("endgeneration", "endif", 1),
            _ => inner.to_owned(),
        };
        text.extend([before, "{%", &replaced, "%}"]);
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }

    fn render(source: &str, messages: &[Message]) -> Result<String, Refused> {
        ChatTemplate::new(source, Some("<s>".into()), None)
            .unwrap()
            .render(messages)
    }

    #[test]
    fn messages_and_special_tokens_are_put_in() {
        let source = "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}] {{ m['content'].strip() }}\n{% endfor %}\
                      {% if add_generation_prompt %}>{% endif %}";
        assert_eq!(
            render(
                source,
                &[message("user", " <b>Tag</b> "), message("assistant", "b")]
            ),
            Ok("<s>[user] <b>Tag</b>\n[assistant] b\n>".into())
        );
    }

    #[test]
    fn json_is_written_like_python() {
        let source = "{{ messages | tojson }}{{ [1, 'é<'] | tojson }}";
        assert_eq!(
            render(source, &[message("user", "ü")]),
            Ok(r#"[{"role": "user", "content": "ü"}][1, "é<"]"#.into())
        );
    }

    #[test]
    fn generation_blocks_vanish() {
        let source = "{%- generation -%} a {%- endgeneration %}{% set generation = 'b' %}{{ generation }}";
        assert_eq!(render(source, &[]), Ok("ab".into()));
    }

    #[test]
    fn a_refused_conversation_does_not_quote_it() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('no ' + messages[0].content) }}{% endif %}";
        let error = render(source, &[message("tool", "secret")]).unwrap_err();
        assert!(!error.to_string().contains("secret"));
        assert_eq!(render(source, &[message("user", "x")]), Ok(String::new()));
    }

    #[test]
    fn a_template_that_never_works_is_found_at_the_start() {
        for source in [
            "{% for %}",
            "{{ messages[0].nothing.nothing }}",
            "{{ raise_exception('always') }}",
        ] {
            assert!(
                matches!(
                    ChatTemplate::new(source, None, None),
                    Err(TemplateError::Broken(_))
                ),
                "{source}"
            );
        }
    }

    #[test]
    fn the_file_goes_before_the_configuration_and_lists_have_a_default() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("tokenizer_config.json");
        let read = || ChatTemplate::read(folder.path()).map(|template| template.render(&[]).unwrap());
        fs::write(&config, "{}").unwrap();
        assert!(matches!(read(), Err(TemplateError::Missing)));
        fs::write(
            &config,
            r#"{"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}"#,
        )
        .unwrap();
        assert_eq!(read().unwrap(), "d");
        fs::write(
            &config,
            r#"{"chat_template": "{{ eos_token }}", "eos_token": {"content": "end"}}"#,
        )
        .unwrap();
        assert_eq!(read().unwrap(), "end");
        fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(read().unwrap(), "file");
    }

    #[test]
    fn dates_are_right_at_the_edges() {
        let cases = [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (1_735_689_599, "2024-12-31 23:59:59"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(strftime("%Y-%m-%d %H:%M:%S", seconds).unwrap(), expected);
        }
        assert_eq!(strftime("%d %b %B 100%%", 0).unwrap(), "01 Jan January 100%");
        assert_eq!(strftime("%Q", 0), None);
        assert_eq!(strftime("%", 0), None);
    }
}
