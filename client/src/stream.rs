//! Server-sent events, as far as OpenAI's API uses them: `data: JSON` lines, ended by `data: [DONE]`.

/// A longer line is refused. The longest legitimate one carries a receipt.
pub(crate) const LINE_BYTES_MAX: usize = 256 * 1024;

/// Collects bytes and yields events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pending: Vec<u8>,
    done: bool,
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The payload of a `data:` line.
    Data(Vec<u8>),
    /// `[DONE]`.
    Done,
}

/// A line over [`LINE_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineTooLong;

impl Events {
    /// Takes more bytes and returns the events that they complete. What follows `[DONE]` is ignored.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, LineTooLong> {
        let mut events = vec![];
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.done {
                break;
            }
            if self.pending.len() + piece.len() > LINE_BYTES_MAX {
                return Err(LineTooLong);
            }
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.pending);
                events.extend(event(line.trim_ascii_end()));
                self.done = events.last() == Some(&Event::Done);
            }
        }
        Ok(events)
    }
}

fn event(line: &[u8]) -> Option<Event> {
    // Comments (`: keep-alive`), other fields and empty lines carry nothing here.
    let data = line.strip_prefix(b"data:")?.trim_ascii_start();
    Some(if data == b"[DONE]" {
        Event::Done
    } else {
        Event::Data(data.to_vec())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: &[u8] =
        b"data: {\"a\":1}\r\n\r\n: ping\n\nevent: x\ndata: {}\n\ndata: [DONE]\n\ndata: late\n\n";

    #[test]
    fn events_do_not_depend_on_how_the_bytes_are_cut() {
        let expected = vec![
            Event::Data(b"{\"a\":1}".to_vec()),
            Event::Data(b"{}".to_vec()),
            Event::Done,
        ];
        for size in 1..=WIRE.len() {
            let mut reader = Events::default();
            let found: Vec<_> = WIRE
                .chunks(size)
                .flat_map(|chunk| reader.push(chunk).unwrap())
                .collect();
            assert_eq!(found, expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut reader = Events::default();
        let piece = vec![b'x'; 64 * 1024];
        let refused = (0..8).any(|_| reader.push(&piece).is_err());
        assert!(refused);
    }
}
