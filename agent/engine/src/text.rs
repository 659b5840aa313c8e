//! Between text and tokens: the tokenizer, and the way back one token at a time without ever showing half a
//! character or the beginning of a stop string.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::config::{ConfigError, read_bounded};

/// Qwen3's tokenizer has 11 MB.
const TOKENIZER_BYTES_MAX: u64 = 128 << 20;
/// Tokens that may pass before bytes that are no character are given up: a character has at most four bytes.
const BROKEN_TOKENS_MAX: usize = 4;

/// Why the tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is missing or too large.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// It is not a tokenizer.
    #[error("{} is not a tokenizer", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: tokenizers::Error,
    },
    /// It has tokens that the model does not know.
    #[error("tokenizer.json has the token {token}, but the model's vocabulary ends at {vocabulary}")]
    Vocabulary {
        /// The highest token.
        token: u32,
        /// Tokens in the model.
        vocabulary: i64,
    },
}

/// The tokenizer cannot encode a prompt or decode an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer failed")]
pub(crate) struct TokenizerFailed;

/// A model's tokenizer.
pub(crate) struct Text {
    tokenizer: Tokenizer,
    token_bytes_max: usize,
}

impl Text {
    /// Reads `tokenizer.json`.
    pub(crate) fn read(folder: &Path, vocabulary: i64) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let bytes = read_bounded(&path, TOKENIZER_BYTES_MAX)?;
        let tokenizer =
            Tokenizer::from_bytes(bytes).map_err(|source| TokenizerError::Format { path, source })?;
        let tokens = tokenizer.get_vocab(true);
        let token = tokens.values().copied().max().unwrap_or(u32::MAX);
        if i64::from(token) >= vocabulary {
            return Err(TokenizerError::Vocabulary { token, vocabulary });
        }
        let token_bytes_max = tokens.keys().map(String::len).max().unwrap_or(1);
        Ok(Self {
            tokenizer,
            token_bytes_max,
        })
    }

    /// The tokens of a rendered prompt; `None` if there are surely more than `tokens_max`, which is found
    /// before time is spent on them.
    pub(crate) fn encode(&self, text: &str, tokens_max: usize) -> Result<Option<Vec<u32>>, TokenizerFailed> {
        if text.len() > tokens_max.saturating_mul(self.token_bytes_max) {
            return Ok(None);
        }
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|_| TokenizerFailed)?;
        Ok(Some(encoding.get_ids().to_vec()))
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerFailed> {
        self.tokenizer.decode(tokens, true).map_err(|_| TokenizerFailed)
    }
}

/// Turns tokens into text as they come.
#[derive(Default)]
pub(crate) struct Detokenizer {
    /// Tokens from a little before the text that is not out yet: some tokens read differently at the start.
    tokens: Vec<u32>,
    /// How many of them are out.
    out: usize,
}

impl Detokenizer {
    /// The text that this token completes; empty while a character is unfinished.
    pub(crate) fn push(&mut self, text: &Text, token: u32) -> Result<String, TokenizerFailed> {
        self.tokens.push(token);
        let shown = text.decode(&self.tokens[..self.out])?;
        let all = text.decode(&self.tokens)?;
        let waiting = self.tokens.len() - self.out;
        if all.ends_with(char::REPLACEMENT_CHARACTER) && waiting <= BROKEN_TOKENS_MAX {
            return Ok(String::new());
        }
        let new = all.get(shown.len()..).unwrap_or_default().to_owned();
        self.tokens.drain(..self.out);
        self.out = self.tokens.len();
        Ok(new)
    }
}

/// Ends a text before the first of some stop strings.
pub(crate) struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    /// None of the strings may be empty.
    pub(crate) fn new(strings: Vec<String>) -> Self {
        Self {
            strings,
            held: String::new(),
        }
    }

    /// The text that can be shown now, and whether a stop string ended it.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self
            .strings
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.held.len() - self.could_begin();
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back in case a stop string would follow.
    pub(crate) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the held text that a stop string begins with.
    fn could_begin(&self) -> usize {
        let begins = |at: &usize| {
            let end = &self.held[*at..];
            self.strings.iter().any(|stop| stop.starts_with(end))
        };
        let mut starts = self.held.char_indices().map(|(at, _)| at);
        starts.find(begins).map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Text {
        Text::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model"), 1 << 20).unwrap()
    }

    #[test]
    fn text_comes_back_whole_and_never_in_half_characters() {
        let text = demo();
        for sample in [
            "Cocoon runs AI.",
            "Grüße, 日本語 🦀👩‍👩‍👧 ok",
            " \n\t  x  ",
            "é\u{301}",
        ] {
            let tokens = text.encode(sample, 1000).unwrap().unwrap();
            let mut detokenizer = Detokenizer::default();
            let pieces: Vec<_> = tokens
                .iter()
                .map(|&token| detokenizer.push(&text, token).unwrap())
                .collect();
            assert!(
                pieces
                    .iter()
                    .all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)),
                "{pieces:?}"
            );
            assert_eq!(pieces.concat(), text.decode(&tokens).unwrap());
        }
    }

    #[test]
    fn bytes_that_never_become_a_character_do_not_stop_the_text() {
        let text = demo();
        // The last byte of a four-byte character, over and over, then a letter.
        let crab = text.encode("🦀", 100).unwrap().unwrap();
        let letter = text.encode("x", 100).unwrap().unwrap();
        let mut detokenizer = Detokenizer::default();
        let broken = [crab[crab.len() - 1]].repeat(9);
        let shown: String = broken
            .iter()
            .chain(&letter)
            .map(|&token| detokenizer.push(&text, token).unwrap())
            .collect();
        assert!(shown.ends_with('x'), "{shown:?}");
    }

    #[test]
    fn a_prompt_that_cannot_fit_is_not_tokenized() {
        let text = demo();
        assert_eq!(text.encode(&"word ".repeat(100_000), 16).unwrap(), None);
        assert!(text.encode("word", 16).unwrap().is_some());
    }

    #[test]
    fn a_tokenizer_larger_than_the_model_is_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo-model");
        assert!(matches!(
            Text::read(&folder, 100),
            Err(TokenizerError::Vocabulary { .. })
        ));
    }

    #[test]
    fn stop_strings_work_across_pieces() {
        let run = |stops: &[&str], pieces: &[&str]| {
            let mut stop = StopStrings::new(stops.iter().map(|&text| text.into()).collect());
            let mut shown = vec![];
            for piece in pieces {
                let (text, ended) = stop.push(piece);
                shown.push(text);
                if ended {
                    return (shown, true);
                }
            }
            shown.push(stop.rest());
            (shown, false)
        };
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(
            run(&["END"], &["ab E", "N", "D cd"]),
            (texts(&["ab ", "", ""]), true)
        );
        assert_eq!(
            run(&["END"], &["ab E", "NT", "x"]),
            (texts(&["ab ", "ENT", "x", ""]), false)
        );
        assert_eq!(run(&["aab"], &["aa", "ab"]), (texts(&["", "a"]), true));
        assert_eq!(run(&["xy", "bc"], &["abcxy"]), (texts(&["a"]), true));
        assert_eq!(
            run(&["é!"], &["caf", "é", "?"]),
            (texts(&["caf", "", "é?", ""]), false)
        );
        assert_eq!(run(&[], &["a", "b"]), (texts(&["a", "b", ""]), false));
        assert_eq!(run(&["END"], &["the E"]), (texts(&["the ", "E"]), false));
    }
}
