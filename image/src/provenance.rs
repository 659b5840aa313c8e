//! Provenance of an image: an in-toto statement (v1) with SLSA's provenance predicate (v1).
//!
//! It says in the words of those two formats what `manifest.json` says: which files the image consists of and what they
//! were made from. It is a function of the manifest alone, without times, so that whoever rebuilds an image can make the
//! same statement; `signature` wraps and signs it.

use std::collections::BTreeMap;

use cocoon_evidence::Digest32;
use cocoon_measurements::{Commit, ImageProfile, Manifest, Origin};
use serde::{Deserialize, Serialize};

/// The manifest's name among the subjects, and in the image's folder.
pub const MANIFEST: &str = "manifest.json";

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// Its number rises when the same manifest gives another statement.
const BUILD_TYPE: &str = concat!(
    env!("CARGO_PKG_REPOSITORY"),
    "/blob/main/docs/REPRODUCE.md#build-type-1"
);
const IN_BUILDER_ROOT: &str = concat!(
    env!("CARGO_PKG_REPOSITORY"),
    "/blob/main/docs/REPRODUCE.md#built-in-the-builder-root"
);
const WITH_OWN_COMPILERS: &str = concat!(
    env!("CARGO_PKG_REPOSITORY"),
    "/blob/main/docs/REPRODUCE.md#built-with-the-machines-own-compilers"
);
const SOURCE: &str = concat!("git+", env!("CARGO_PKG_REPOSITORY"));

/// The statement. Members that it does not know are ignored, as in-toto demands of readers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Resource>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Predicate {
    build_definition: BuildDefinition,
    run_details: RunDetails,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BuildDefinition {
    build_type: String,
    external_parameters: ExternalParameters,
    #[serde(default)]
    resolved_dependencies: Vec<Resource>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ExternalParameters {
    profile: ImageProfile,
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RunDetails {
    builder: Builder,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Builder {
    id: String,
}

/// in-toto's ResourceDescriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Resource {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    uri: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    digest: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// Why a payload is no statement about an image.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// Not JSON of this form.
    #[error("it is not the JSON of a provenance statement")]
    Malformed(#[source] serde_json::Error),
    /// About something else, or in another version.
    #[error("its {field} is not {expected}")]
    Kind {
        /// Which member.
        field: &'static str,
        /// What this program reads.
        expected: &'static str,
    },
    /// Nothing to compare the image with.
    #[error("it does not name exactly one {MANIFEST} with its SHA-256")]
    NoManifest,
}

impl Statement {
    /// The statement about an image whose `manifest.json` has this SHA-256.
    pub fn of(manifest: &Manifest, manifest_sha256: Digest32) -> Self {
        let artifacts = manifest.artifacts.named();
        let artifacts = artifacts.map(|(_, file)| hashed(&file.file, file.sha256));
        let origin = manifest.origin.as_ref();
        let in_builder_root = origin.is_some_and(|origin| origin.builder_root.is_some());
        let builder = if in_builder_root {
            IN_BUILDER_ROOT
        } else {
            WITH_OWN_COMPILERS
        };
        let mut dependencies = origin.map(of_origin).unwrap_or_default();
        let inputs = manifest.inputs.iter();
        dependencies.extend(inputs.map(|(name, digest)| hashed(&format!("input: {name}"), *digest)));
        Self {
            kind: STATEMENT_TYPE.into(),
            subject: artifacts.chain([hashed(MANIFEST, manifest_sha256)]).collect(),
            predicate_type: PREDICATE_TYPE.into(),
            predicate: Predicate {
                build_definition: BuildDefinition {
                    build_type: BUILD_TYPE.into(),
                    external_parameters: ExternalParameters {
                        profile: manifest.profile,
                        source: SOURCE.into(),
                    },
                    resolved_dependencies: dependencies,
                },
                run_details: RunDetails {
                    builder: Builder { id: builder.into() },
                },
            },
        }
    }

    /// Reads a statement of the kind that [`Statement::of`] makes.
    ///
    /// # Errors
    /// See [`StatementError`].
    pub fn parse(json: &[u8]) -> Result<Self, StatementError> {
        let statement: Self = serde_json::from_slice(json).map_err(StatementError::Malformed)?;
        let build_type = &statement.predicate.build_definition.build_type;
        for (field, found, expected) in [
            ("_type", &statement.kind, STATEMENT_TYPE),
            ("predicateType", &statement.predicate_type, PREDICATE_TYPE),
            ("buildType", build_type, BUILD_TYPE),
        ] {
            if found != expected {
                return Err(StatementError::Kind { field, expected });
            }
        }
        Ok(statement)
    }

    /// The JSON that is signed.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// SHA-256 of the `manifest.json` that it is about.
    ///
    /// # Errors
    /// [`StatementError::NoManifest`].
    pub fn manifest_sha256(&self) -> Result<Digest32, StatementError> {
        let mut manifests = self.subject.iter().filter(|subject| subject.name == MANIFEST);
        let (Some(manifest), None) = (manifests.next(), manifests.next()) else {
            return Err(StatementError::NoManifest);
        };
        let digest = manifest.digest.get("sha256");
        digest
            .and_then(|digest| digest.parse().ok())
            .ok_or(StatementError::NoManifest)
    }
}

fn of_origin(origin: &Origin) -> Vec<Resource> {
    let mut dependencies = vec![
        source(origin.commit.as_ref()),
        hashed("image.lock", origin.image_lock),
        hashed("Cargo.lock", origin.cargo_lock),
    ];
    let root = origin.builder_root;
    dependencies.extend(root.map(|digest| hashed("builder root", digest)));
    dependencies
}

/// A commit stands as the source's digest only if nothing differed from it: other programs read no annotations.
fn source(commit: Option<&Commit>) -> Resource {
    let mut source = Resource {
        name: "source".into(),
        uri: SOURCE.into(),
        ..Resource::default()
    };
    if let Some(Commit { id, clean }) = commit {
        let (into, key) = if *clean {
            (&mut source.digest, "gitCommit")
        } else {
            (&mut source.annotations, "changedSince")
        };
        into.insert(key.into(), id.clone());
    }
    source
}

fn hashed(name: &str, digest: Digest32) -> Resource {
    Resource {
        name: name.into(),
        digest: BTreeMap::from([("sha256".into(), digest.to_string())]),
        ..Resource::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cocoon_measurements::{Artifact, Artifacts, VerityTree};
    use serde_json::Value;

    use super::*;

    /// A manifest that its readers take, about artifacts with these contents.
    pub(crate) fn manifest(firmware: &[u8], kernel: &[u8], root: &[u8]) -> Manifest {
        let root_verity = VerityTree {
            data_blocks: 1,
            salt: Digest32::ZERO,
            root_hash: Digest32::of(b"root"),
        };
        let artifact = |file: &str, content: &[u8]| Artifact {
            file: file.into(),
            bytes: content.len() as u64,
            sha256: Digest32::of(content),
        };
        Manifest {
            version: 1,
            profile: ImageProfile::Cpu,
            command_line: format!(
                "ro dm-mod.create=\"root,,0,ro,0 8 verity {} 1 panic_on_corruption\"",
                root_verity.table("/dev/vda")
            ),
            artifacts: Artifacts {
                firmware: artifact("firmware.fd", firmware),
                firmware_snp: None,
                kernel: artifact("kernel", kernel),
                root: artifact("root.img", root),
            },
            root_verity,
            inputs: BTreeMap::from([("linux-source".into(), Digest32::of(b"linux"))]),
            input_digest: Digest32::of(b"inputs"),
            origin: Some(Origin {
                image_lock: Digest32::of(b"image.lock"),
                cargo_lock: Digest32::of(b"Cargo.lock"),
                commit: Some(Commit {
                    id: "c".repeat(40),
                    clean: true,
                }),
                builder_root: Some(Digest32::of(b"builder")),
            }),
            expected: vec![],
            files: vec![],
        }
    }

    fn json(manifest: &Manifest) -> Value {
        let statement = Statement::of(manifest, Digest32::of(b"manifest"));
        serde_json::from_slice(&statement.to_json()).unwrap()
    }

    #[test]
    fn it_names_every_artifact_and_what_it_was_made_from() {
        let value = json(&manifest(b"f", b"k", b"r"));
        let subjects: Vec<_> = value["subject"].as_array().unwrap().iter().collect();
        let expected = [("firmware.fd", &b"f"[..]), ("kernel", b"k"), ("root.img", b"r")];
        for (subject, (name, content)) in subjects.iter().zip(expected) {
            assert_eq!(subject["name"], name);
            assert_eq!(subject["digest"]["sha256"], Digest32::of(content).to_string());
        }
        assert_eq!(subjects.len(), 4);
        assert_eq!(value["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(value["predicateType"], "https://slsa.dev/provenance/v1");
        let definition = &value["predicate"]["buildDefinition"];
        assert_eq!(definition["externalParameters"]["profile"], "cpu");
        let dependencies = definition["resolvedDependencies"].as_array().unwrap();
        let names: Vec<_> = dependencies
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "source",
                "image.lock",
                "Cargo.lock",
                "builder root",
                "input: linux-source"
            ]
        );
        assert_eq!(dependencies[0]["digest"]["gitCommit"], "c".repeat(40));
        let builder = value["predicate"]["runDetails"]["builder"]["id"]
            .as_str()
            .unwrap();
        assert!(builder.ends_with("#built-in-the-builder-root"), "{builder}");
    }

    #[test]
    fn a_changed_source_does_not_pass_for_its_commit() {
        let mut changed = manifest(b"", b"", b"");
        changed.origin.as_mut().unwrap().commit.as_mut().unwrap().clean = false;
        let value = json(&changed);
        let source = &value["predicate"]["buildDefinition"]["resolvedDependencies"][0];
        assert!(source["digest"].is_null(), "{source}");
        assert_eq!(source["annotations"]["changedSince"], "c".repeat(40));
    }

    #[test]
    fn own_compilers_do_not_pass_for_the_builder_root() {
        let mut own = manifest(b"", b"", b"");
        own.origin.as_mut().unwrap().builder_root = None;
        let mut older = own.clone();
        older.origin = None;
        for manifest in [own, older] {
            let value = json(&manifest);
            let builder = value["predicate"]["runDetails"]["builder"]["id"]
                .as_str()
                .unwrap();
            assert!(builder.ends_with("own-compilers"), "{builder}");
        }
    }

    #[test]
    fn a_statement_about_something_else_is_refused() {
        let honest = Statement::of(&manifest(b"", b"", b""), Digest32::of(b"manifest"));
        let parsed = Statement::parse(&honest.to_json()).unwrap();
        assert_eq!(parsed, honest);
        assert_eq!(parsed.manifest_sha256().unwrap(), Digest32::of(b"manifest"));
        let text = String::from_utf8(honest.to_json()).unwrap();
        for other in [
            text.replace("Statement/v1", "Statement/v0.1"),
            text.replace("provenance/v1", "verification_summary/v1"),
            text.replace("build-type-1", "build-type-2"),
        ] {
            let error = Statement::parse(other.as_bytes()).unwrap_err();
            assert!(matches!(error, StatementError::Kind { .. }), "{error}");
        }
        for garbage in ["", "{}", "[]"] {
            let error = Statement::parse(garbage.as_bytes()).unwrap_err();
            assert!(matches!(error, StatementError::Malformed(_)), "{garbage}");
        }
        for subject in [
            text.replace("manifest.json", "other.json"),
            text.replace("root.img", "manifest.json"),
        ] {
            let statement = Statement::parse(subject.as_bytes()).unwrap();
            assert!(statement.manifest_sha256().is_err(), "{subject}");
        }
    }
}
