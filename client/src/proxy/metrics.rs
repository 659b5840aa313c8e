//! Counters in Prometheus' text format. They name nodes and hold no content.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Since the proxy started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Answered whole, with a true receipt.
    pub(crate) answered: Counter,
    /// Refused by the proxy or a node before any byte of an answer.
    pub(crate) refused: Counter,
    /// Broke off, or had a false receipt.
    pub(crate) failed: Counter,
    /// Given up by the program that asked.
    pub(crate) cancelled: Counter,
    /// Sent to another node, because nothing of the first one's answer had come.
    pub(crate) retried: Counter,
    /// Receipts that are not true.
    pub(crate) false_receipts: Counter,
    pub(crate) tokens_in: Counter,
    pub(crate) tokens_out: Counter,
    /// By receipts.
    pub(crate) spent_nano: Counter,
    /// From a request's last byte to its answer's first, for those that have one.
    pub(crate) first_byte_count: Counter,
    pub(crate) first_byte_us: Counter,
    /// Requests of somebody else's web pages.
    pub(crate) trespasses: Counter,
}

/// Only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One node's line.
pub(crate) struct NodeGauge {
    pub(crate) node: String,
    pub(crate) usable: bool,
    pub(crate) outstanding: usize,
}

impl Metrics {
    pub(crate) fn first_byte(&self, after: Duration) {
        self.first_byte_count.add(1);
        self.first_byte_us
            .add(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
    }

    /// The text.
    pub(crate) fn render(&self, nodes: &[NodeGauge]) -> String {
        let mut text = Text::default();
        text.head("requests_total", "counter", "Chat requests by how they ended");
        for (outcome, counter) in [
            ("answered", &self.answered),
            ("refused", &self.refused),
            ("failed", &self.failed),
            ("cancelled", &self.cancelled),
        ] {
            text.sample("requests_total", &[("outcome", outcome)], counter.get() as f64);
        }
        let counters = [
            ("retries_total", "Requests sent to another node", &self.retried),
            (
                "false_receipts_total",
                "Receipts that are not true",
                &self.false_receipts,
            ),
            ("spent_nanoton_total", "Charged by receipts", &self.spent_nano),
            (
                "trespasses_total",
                "Requests of foreign web pages",
                &self.trespasses,
            ),
        ];
        for (name, help, counter) in counters {
            text.head(name, "counter", help);
            text.sample(name, &[], counter.get() as f64);
        }
        text.head("tokens_total", "counter", "Tokens by receipts");
        text.sample("tokens_total", &[("kind", "input")], self.tokens_in.get() as f64);
        text.sample(
            "tokens_total",
            &[("kind", "output")],
            self.tokens_out.get() as f64,
        );
        text.head(
            "first_byte_seconds",
            "summary",
            "From a request to its answer's first byte",
        );
        let first_byte_s = self.first_byte_us.get() as f64 / 1e6;
        text.sample("first_byte_seconds_sum", &[], first_byte_s);
        text.sample(
            "first_byte_seconds_count",
            &[],
            self.first_byte_count.get() as f64,
        );
        text.head(
            "node_usable",
            "gauge",
            "Whether the node is verified and not left alone",
        );
        for node in nodes {
            text.sample(
                "node_usable",
                &[("node", &node.node)],
                f64::from(u8::from(node.usable)),
            );
        }
        text.head("node_outstanding", "gauge", "Requests that run on the node");
        for node in nodes {
            text.sample(
                "node_outstanding",
                &[("node", &node.node)],
                node.outstanding as f64,
            );
        }
        text.0
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP cocoon_proxy_{name} {help}."));
        self.line(format_args!("# TYPE cocoon_proxy_{name} {kind}"));
    }

    /// Values of labels are endpoints and constants: nothing in them needs escaping.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        self.line(format_args!("cocoon_proxy_{name}{labels} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing into memory cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_sample() {
        let metrics = Metrics::default();
        metrics.answered.add(3);
        metrics.first_byte(Duration::from_millis(250));
        let text = metrics.render(&[NodeGauge {
            node: "https://127.0.0.1:8443".into(),
            usable: true,
            outstanding: 2,
        }]);
        assert!(
            text.contains("cocoon_proxy_requests_total{outcome=\"answered\"} 3\n"),
            "{text}"
        );
        assert!(
            text.contains("cocoon_proxy_first_byte_seconds_sum 0.25\n"),
            "{text}"
        );
        assert!(text.contains("cocoon_proxy_node_outstanding{node=\"https://127.0.0.1:8443\"} 2\n"));
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("cocoon_proxy_"), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
