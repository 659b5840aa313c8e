//! What the host sees of an answer: its size and its timing, made coarse.
//!
//! TLS hides content, not lengths, and a stream that carries each token as it comes shows the length and the
//! time of each: enough to guess topics (Whisper Leak, arXiv 2511.03675). A stream is therefore cut into cells
//! of a few sizes, one at each tick, whether there is text or not; answers in one piece are filled up to a few
//! sizes. Padding is a comment of the event stream, or white space behind JSON: clients drop both unseen.
//! docs/THREAT_MODEL.md says what stays visible.

use std::time::Duration;

use bytes::Bytes;

/// Between two cells. A token waits half of it on average; people read slower.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Sizes of a cell. The smallest holds some tokens; a stream that catches up after a pause takes the largest.
const CELL_BYTES: [usize; 3] = [1024, 4096, 16 * 1024];

/// Sizes of an answer in one piece; above the largest, multiples of it.
const WHOLE_BYTES: [usize; 5] = [1024, 4096, 16 * 1024, 64 * 1024, 256 * 1024];

/// A comment and the empty line that ends it.
const COMMENT_BYTES_MIN: usize = ":\n\n".len();

/// Takes the next cell from the front of `pending`, which holds whole events; what does not fit in the largest
/// stays.
pub(crate) fn cell(pending: &mut Vec<u8>) -> Bytes {
    // Padding has to stand between two events, so it follows only when all that is pending goes out.
    let fits = |size: &&usize| **size == pending.len() || **size >= pending.len() + COMMENT_BYTES_MIN;
    let Some(size) = CELL_BYTES.iter().find(fits) else {
        // Too much, or one or two bytes short of a size: what fills a size whole goes, the rest next time.
        let filled = CELL_BYTES.iter().rfind(|size| **size <= pending.len());
        let take = *filled.expect("more than the smallest is pending");
        return pending.drain(..take).collect::<Vec<_>>().into();
    };
    let mut cell = std::mem::take(pending);
    if cell.len() < *size {
        cell.push(b':');
        cell.resize(size - 2, b' ');
        cell.extend(b"\n\n");
    }
    cell.into()
}

/// JSON text, filled up.
pub(crate) fn whole(mut text: String) -> Bytes {
    let largest = WHOLE_BYTES[WHOLE_BYTES.len() - 1];
    let size = WHOLE_BYTES.iter().copied().find(|size| *size >= text.len());
    let size = size.unwrap_or_else(|| text.len().next_multiple_of(largest));
    text.extend(std::iter::repeat_n(' ', size - text.len()));
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(events: &str) -> Vec<Bytes> {
        let mut pending = events.as_bytes().to_vec();
        let mut cells = vec![cell(&mut pending)];
        while !pending.is_empty() {
            cells.push(cell(&mut pending));
        }
        cells
    }

    /// The events, as a client that follows the standard reads them: comments and empty lines dropped.
    fn read(cells: &[Bytes]) -> String {
        let text = String::from_utf8(cells.concat()).unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.starts_with(':') && !line.is_empty());
        lines.map(|line| format!("{line}\n\n")).collect()
    }

    fn event(bytes: usize) -> String {
        format!("data: {}\n\n", "x".repeat(bytes - "data: \n\n".len()))
    }

    #[test]
    fn cells_have_one_of_three_sizes_and_carry_every_event_unchanged() {
        let lengths = (8..1100)
            .chain(4080..4110)
            .chain(16_370..16_400)
            .chain([40_000, 70_000]);
        for length in lengths {
            for events in [event(length), event(length) + &event(9)] {
                let cells = cells(&events);
                assert_eq!(read(&cells), events, "{length}");
                assert!(
                    cells.iter().all(|cell| CELL_BYTES.contains(&cell.len())),
                    "{length}"
                );
            }
        }
    }

    /// A token of one byte, of thirty, or none in this tick: the host cannot tell which.
    #[test]
    fn cells_of_short_tokens_of_long_ones_and_of_silence_are_of_one_size() {
        let sizes = [String::new(), event(220), event(249), event(220) + &event(240)].map(|events| {
            let cells = cells(&events);
            assert_eq!(cells.len(), 1);
            cells[0].len()
        });
        assert_eq!(sizes, [1024; 4]);
    }

    #[test]
    fn whole_answers_have_few_sizes_and_stay_the_same_json() {
        for length in [2, 1023, 1024, 1025, 5000, 256 * 1024 + 1, 900_000] {
            let text = serde_json::Value::from("x".repeat(length - 2)).to_string();
            let padded = whole(text.clone());
            let known = WHOLE_BYTES.contains(&padded.len()) || padded.len().is_multiple_of(256 * 1024);
            assert!(known, "{length}: {}", padded.len());
            let value: serde_json::Value = serde_json::from_slice(&padded).unwrap();
            assert_eq!(value.to_string(), text);
        }
    }
}
