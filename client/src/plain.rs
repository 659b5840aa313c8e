//! Text from outside, made safe for a terminal.

/// Replaces what a terminal would act upon (control characters other than line feed and tab) and cuts after
/// `chars_max` characters. A model's answer and a server's error message can hold escape sequences.
pub fn plain(text: &str, chars_max: usize) -> String {
    text.chars()
        .take(chars_max)
        .map(|character| match character {
            '\n' | '\t' => character,
            // Bidirectional overrides and isolates reorder what stands around them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            other if other.is_control() => '\u{fffd}',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\rc\n", 100), "a\u{fffd}[2Jb\u{fffd}c\n");
        assert_eq!(plain("\u{202e}abc", 2), "\u{fffd}a");
    }
}
