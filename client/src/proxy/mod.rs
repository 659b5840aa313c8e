//! OpenAI's API on loopback, for any program; behind it, verified nodes only.
//!
//! [`Fleet`] verifies nodes. With a [`Purse`] it becomes a [`Proxy`], which serves: it reads a request, picks a
//! node, makes sure of the node's proof and of a grant, and passes the answer on as it comes. Nothing of a request
//! leaves before the node is proven, and nothing is asked of a second node once a byte of the first one's answer
//! was delivered.
//!
//! What it trusts: programs on this machine, as they share its loopback. It does not trust web pages in their
//! browsers ([`guard`]), other than its own ([`page`]).

mod choose;
mod guard;
mod metrics;
mod node;
mod page;
mod receipts;
mod relay;
mod reply;
mod request;
mod serve;
mod wanted;

use std::sync::Arc;

use cocoon_protocol::NetworkId;
use cocoon_verify::Policy;
use serde_json::{Value, json};

pub use self::page::PageError;
use self::{
    metrics::{Metrics, NodeGauge},
    node::{Health, Node},
    page::Page,
    receipts::Receipts,
};
use crate::{
    Accepted, ConnectError, Deadlines, Endpoint, Proof, Purse, Verifier, clock, table, verdict_json,
};

/// Nodes under one policy.
#[derive(Debug)]
pub struct Fleet {
    nodes: Vec<Arc<Node>>,
}

/// What answers and metrics are kept in.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) metrics: Metrics,
    pub(crate) receipts: Receipts,
}

/// A fleet that can be paid.
#[derive(Debug)]
pub struct Proxy {
    fleet: Fleet,
    purse: Purse,
    shared: Arc<Shared>,
    /// Where it is absent, no request of a page is answered.
    page: Option<Page>,
}

impl Fleet {
    /// Nothing is connected yet. What one of the nodes is accepted by, all others have to come up to.
    ///
    /// # Errors
    /// [`ConnectError::Tls`].
    pub fn new(
        endpoints: impl IntoIterator<Item = Endpoint>,
        policy: &Policy,
        accepted: impl Into<Accepted>,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        let accepted = accepted.into();
        let node = |endpoint| {
            let verifier = Verifier::new(policy.clone(), accepted.clone(), deadlines)?;
            Ok(Arc::new(Node::new(endpoint, verifier)))
        };
        let nodes = endpoints
            .into_iter()
            .map(node)
            .collect::<Result<_, ConnectError>>()?;
        Ok(Self { nodes })
    }

    /// Verifies every node, one after the other.
    pub async fn verify(&self) -> Vec<(Endpoint, Result<Arc<Proof>, ConnectError>)> {
        let mut verdicts = vec![];
        for node in &self.nodes {
            verdicts.push((node.endpoint().clone(), node.verify().await));
        }
        verdicts
    }

    /// Where the first verified node wants to be paid.
    pub fn network(&self) -> Option<NetworkId> {
        let proof = self.nodes.iter().find_map(|node| node.health().proof)?;
        Some(proof.launch().settlement.network)
    }
}

impl Proxy {
    /// What it spends, and what can still be drawn from grants that it locked, is at most `max_nano` in all, the same
    /// share for each node.
    pub fn new(fleet: Fleet, purse: Purse, max_nano: u64) -> Self {
        let share_nano = max_nano / (fleet.nodes.len().max(1) as u64);
        for node in &fleet.nodes {
            node.grant_share(share_nano);
        }
        Self {
            fleet,
            purse,
            shared: Arc::default(),
            page: None,
        }
    }

    /// Serves a page for browsers too, for whoever knows the path that this returns: it holds a new token.
    ///
    /// # Errors
    /// See [`PageError`].
    pub fn offer_page(&mut self) -> Result<String, PageError> {
        let page = self.page.insert(Page::new()?);
        Ok(page.path())
    }

    /// What `GET /verification` shows.
    fn verification(&self) -> Value {
        let nodes = self.fleet.nodes.iter();
        let nodes: Vec<_> = nodes.map(|node| node_json(node)).collect();
        json!({"now_s": clock::now_s(), "nodes": nodes, "about": self.meanings()})
    }

    /// What the rows mean that are shown, by their names.
    fn meanings(&self) -> Value {
        let healths = self.fleet.nodes.iter().map(|node| node.health());
        let mut about = serde_json::Map::new();
        for health in healths {
            let proven = health.proof.iter().map(|proof| proof.verification());
            let refused = health
                .fault
                .iter()
                .filter_map(|fault| fault.verification.as_deref());
            let reports = proven.chain(refused);
            let reports =
                reports.flat_map(|judged| std::iter::once(&judged.certificate).chain(&judged.fresh));
            for check in reports.flat_map(|report| &report.checks) {
                about.insert(check.name.to_string(), table::about(&check.name).into());
            }
        }
        about.into()
    }

    fn metrics(&self) -> String {
        let nodes = self.fleet.nodes.iter();
        let gauges: Vec<_> = nodes
            .map(|node| NodeGauge {
                node: node.endpoint().to_string(),
                usable: node.health().is_usable(),
                outstanding: node.outstanding(),
            })
            .collect();
        self.shared.metrics.render(&gauges)
    }

    /// OpenAI's list: the models of usable nodes, as their guests measured them.
    fn models(&self) -> Vec<Value> {
        let mut models: Vec<Value> = vec![];
        for health in self.fleet.nodes.iter().map(|node| node.health()) {
            if !health.is_usable() {
                continue;
            }
            let Some(proof) = health.proof else { continue };
            let id = &proof.launch().model.name;
            if !models.iter().any(|model| model["id"] == **id) {
                let created = proof.made_s();
                models.push(json!({"id": id, "object": "model", "created": created, "owned_by": "cocoon"}));
            }
        }
        models
    }
}

fn node_json(node: &Node) -> Value {
    let health = node.health();
    let fault = health.fault.as_ref().map(|fault| {
        json!({"at_s": fault.at_s, "exit_code": fault.exit as u8, "error": fault.text,
               "report": fault.verification.as_deref().map(|judged| verdict_json(judged, Some(fault.exit)))})
    });
    let proof = health.proof.as_deref();
    json!({
        "node": node.endpoint().to_string(),
        "state": state(&health),
        "outstanding": node.outstanding(),
        "verified_at_s": proof.map(Proof::made_s),
        "certificate_sha256": proof.map(|proof| proof.certificate().to_string()),
        "report": proof.map(|proof| verdict_json(proof.verification(), None)),
        "fault": fault,
    })
}

fn state(health: &Health) -> &'static str {
    match (&health.fault, health.distrusted) {
        (_, true) => "distrusted",
        (Some(_), false) => "left alone",
        (None, false) if health.proof.is_some() => "verified",
        (None, false) => "unknown",
    }
}
