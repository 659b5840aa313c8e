//! The table of attacks and the tests that stand for them (docs/ATTACKS.md) names tests that exist.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::Path};

/// Where tests are.
const FOLDERS: [&str; 6] = ["agent", "ci", "client", "host-launcher", "image", "measurements"];

/// Each row is `| attack | tests |`, the tests in backquotes.
fn named_tests(table: &str) -> Vec<&str> {
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let tests = rows.filter_map(|row| row.split('|').nth(2));
    tests
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

fn read_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *sources += &fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn every_test_in_the_table_of_attacks_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table = fs::read_to_string(root.join("docs/ATTACKS.md")).unwrap();
    let mut sources = String::new();
    for folder in FOLDERS {
        read_sources(&root.join(folder), &mut sources);
    }
    let named = named_tests(&table);
    assert!(named.len() > 50, "the table was not understood: {named:?}");
    for name in named {
        assert!(
            sources.contains(&format!("fn {name}()")),
            "there is no test {name}"
        );
    }
}
