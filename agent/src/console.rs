//! The console: the host can read it, so nothing reaches it but events whose target is [`EXPORT`].
//!
//! An allow-list rather than a level: an event of a dependency may quote content, and is dropped whatever its
//! level. Exported events hold stages, counts and causes; never prompts, answers or keys.

use std::{fmt, io::Write as _};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// The target of events that may leave the guest.
pub const EXPORT: &str = "export";

/// Writes exportable events to standard error, one line each.
pub struct Console;

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.is_span() && metadata.target() == EXPORT
    }

    fn event(&self, event: &Event<'_>) {
        if !self.enabled(event.metadata()) {
            return;
        }
        let mut line = Line(format!("cocoon-agent {}:", event.metadata().level()));
        event.record(&mut line);
        // A console that cannot be written to is no reason to stop serving.
        let _ = writeln!(std::io::stderr().lock(), "{}", line.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "message" => format!(" {value:?}"),
            name => format!(" {name}={value:?}"),
        };
        // One event is one line, whatever a host-given name contains.
        self.0.extend(text.chars().filter(|c| !c.is_control()));
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn only_events_marked_for_export_are_enabled() {
        tracing::subscriber::with_default(Console, || {
            assert!(tracing::enabled!(target: EXPORT, Level::INFO));
            assert!(!tracing::enabled!(target: "hyper", Level::ERROR));
            assert!(!tracing::enabled!(Level::ERROR));
        });
    }
}
