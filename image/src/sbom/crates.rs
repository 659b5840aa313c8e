//! The crates that a program is compiled from, as cargo resolves them for it.
//!
//! `Cargo.lock` alone would say too much: it is for all programs and tests of the workspace. Cargo is asked for one
//! program with its features on the guest's target, and its answer is joined with the lock's checksums.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use crate::{
    command::{self, CommandError},
    program::TARGET,
    recipe::Program,
};

/// Name and version.
pub(super) type CrateId = (String, String);

/// What a program is compiled from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Closure {
    /// Crates in the program, and what each of them uses.
    pub linked: BTreeMap<CrateId, BTreeSet<CrateId>>,
    /// Crates that only run while it is compiled: build scripts and macros.
    pub build_only: BTreeSet<CrateId>,
}

/// Asks cargo, which reads the lock and the crates in its home.
pub(super) fn closure(program: &Program, source: &Path) -> Result<Closure, CommandError> {
    let linked = graph(&tree(program, source, "normal,no-proc-macro")?);
    let all = graph(&tree(program, source, "normal,build")?);
    let build_only = all.into_keys().filter(|id| !linked.contains_key(id)).collect();
    Ok(Closure { linked, build_only })
}

fn tree(program: &Program, source: &Path, edges: &str) -> Result<String, CommandError> {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(source)
        .args(["tree", "--locked", "--prefix=depth", "--target", TARGET]);
    cargo.args(["--charset=ascii", "--edges", edges, "--package", &program.package]);
    if !program.features.is_empty() {
        cargo.args(["--features", &program.features.join(",")]);
    }
    command::run(&mut cargo, None)
}

/// Lines are `DEPTHNAME vVERSION ...`. What is marked `(*)` was listed with its needs before.
fn graph(tree: &str) -> BTreeMap<CrateId, BTreeSet<CrateId>> {
    let mut graph = BTreeMap::<CrateId, BTreeSet<CrateId>>::new();
    let mut above: Vec<CrateId> = Vec::new();
    for (depth, id) in tree.lines().filter_map(entry) {
        above.truncate(depth);
        if let Some(parent) = above.last() {
            graph.entry(parent.clone()).or_default().insert(id.clone());
        }
        graph.entry(id.clone()).or_default();
        above.push(id);
    }
    graph
}

fn entry(line: &str) -> Option<(usize, CrateId)> {
    let name = line.find(|letter: char| !letter.is_ascii_digit())?;
    let depth = line[..name].parse().ok()?;
    let mut words = line[name..].split(' ');
    let name = words.next()?;
    let version = words.next()?.strip_prefix('v')?;
    Some((depth, (name.to_owned(), version.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_tree_becomes_a_graph() {
        let text = "0agent v0.1.0 (/some/where)\n1bytes v1.2.3\n1digest v2.0.0\n2bytes v1.2.3\n2hex v0.4.0\n\
                    1leaf v3.0.0 (*)\n";
        let id = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let graph = graph(text);
        let needs = |name, version| {
            graph[&id(name, version)]
                .iter()
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(needs("agent", "0.1.0"), ["bytes", "digest", "leaf"]);
        assert_eq!(needs("digest", "2.0.0"), ["bytes", "hex"]);
        assert!(needs("leaf", "3.0.0").is_empty());
        assert_eq!(graph.len(), 5);
    }
}
