//! The part of CycloneDX 1.6 in JSON (ECMA-424) that the bill of materials of an image needs.

use std::fmt::Write as _;

use cocoon_evidence::Digest32;
use serde::Serialize;

/// A whole document. It names no time and no serial number: the same image has the same one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bom {
    bom_format: &'static str,
    spec_version: &'static str,
    version: u32,
    /// What the document is about.
    pub metadata: Metadata,
    /// Everything in it, ordered by reference.
    pub components: Vec<Component>,
    /// Who contains or needs whom, ordered by reference.
    pub dependencies: Vec<Dependency>,
}

impl Bom {
    /// A document, brought into its order.
    pub fn new(
        component: Component,
        mut components: Vec<Component>,
        mut dependencies: Vec<Dependency>,
    ) -> Self {
        components.sort_by(|a, b| a.reference.cmp(&b.reference));
        dependencies.sort_by(|a, b| a.reference.cmp(&b.reference));
        Self {
            bom_format: "CycloneDX",
            spec_version: "1.6",
            version: 1,
            metadata: Metadata { component },
            components,
            dependencies,
        }
    }
}

/// What a document is about.
#[derive(Debug, Serialize)]
pub struct Metadata {
    /// The image.
    pub component: Component,
}

/// One part.
#[derive(Debug, Clone, Serialize)]
pub struct Component {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Unique in the document.
    #[serde(rename = "bom-ref")]
    pub reference: String,
    /// For people.
    pub name: String,
    /// None where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether it is in the image.
    pub scope: Scope,
    /// Of the file that it was fetched as, or that it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<Hash>,
    /// Where the ecosystem has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purl: Option<String>,
    /// How it was changed after it was fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pedigree: Option<Pedigree>,
    /// Its files in the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// What the standard has no word for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub properties: Vec<Property>,
}

impl Component {
    /// A part of the image with this reference and name, and nothing else known.
    pub fn new(kind: Kind, reference: String, name: &str) -> Self {
        Self {
            kind,
            reference,
            name: name.to_owned(),
            version: None,
            scope: Scope::Required,
            hashes: Vec::new(),
            purl: None,
            pedigree: None,
            evidence: None,
            properties: Vec::new(),
        }
    }

    /// A published package: its purl is its reference.
    pub fn package(kind: Kind, ecosystem: &str, name: &str, version: &str, qualifiers: &str) -> Self {
        let purl = format!(
            "pkg:{ecosystem}/{}@{}{qualifiers}",
            encoded(name),
            encoded(version)
        );
        Self {
            version: Some(version.to_owned()),
            purl: Some(purl.clone()),
            ..Self::new(kind, purl, name)
        }
    }

    /// With the hash of what it was fetched as.
    #[must_use]
    pub fn hashed(mut self, sha256: Digest32) -> Self {
        self.hashes.push(Hash {
            alg: "SHA-256",
            content: sha256,
        });
        self
    }

    /// With one more patch that was applied to it, by its place in Cocoon's source tree.
    pub fn add_patch(&mut self, path: String) {
        let pedigree = self.pedigree.get_or_insert_default();
        pedigree.patches.push(Patch {
            kind: "unofficial",
            diff: Diff { url: path },
        });
    }

    /// With one more file in the root.
    pub fn add_file(&mut self, path: &str) {
        let location = path.to_owned();
        let evidence = self.evidence.get_or_insert_default();
        evidence.occurrences.push(Occurrence { location });
    }

    /// With a property.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        self.properties.push(Property { name, value });
        self
    }
}

/// What a component is.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A program.
    Application,
    /// A file of the image.
    File,
    /// UEFI firmware.
    Firmware,
    /// Code that programs use.
    Library,
    /// A kernel, or a whole guest.
    OperatingSystem,
}

/// Whether a component is in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// In it.
    Required,
    /// Only used to make it.
    Excluded,
}

/// A hash.
#[derive(Debug, Clone, Serialize)]
pub struct Hash {
    alg: &'static str,
    content: Digest32,
}

/// How a component was changed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Pedigree {
    /// In the order in which they were applied.
    pub patches: Vec<Patch>,
}

/// A change to a component. The standard gives it no hash: that stands at the component of the patch's own.
#[derive(Debug, Clone, Serialize)]
pub struct Patch {
    #[serde(rename = "type")]
    kind: &'static str,
    diff: Diff,
}

/// Where a change is.
#[derive(Debug, Clone, Serialize)]
pub struct Diff {
    url: String,
}

/// Where a component was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Evidence {
    /// In the root.
    pub occurrences: Vec<Occurrence>,
}

/// A place.
#[derive(Debug, Clone, Serialize)]
pub struct Occurrence {
    /// Absolute path in the guest.
    pub location: String,
}

/// Something the standard has no word for.
#[derive(Debug, Clone, Serialize)]
pub struct Property {
    name: &'static str,
    value: String,
}

/// What a component contains or needs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// The component.
    #[serde(rename = "ref")]
    pub reference: String,
    /// References.
    pub depends_on: Vec<String>,
}

/// Percent-encoded as package URLs want it.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_url_escapes_what_versions_hold() {
        let package = Component::package(
            Kind::Library,
            "deb/debian",
            "libstdc++6",
            "1:14.2.0-19+b1~x",
            "?arch=amd64",
        );
        assert_eq!(
            package.purl.as_deref(),
            Some("pkg:deb/debian/libstdc%2B%2B6@1%3A14.2.0-19%2Bb1~x?arch=amd64")
        );
        assert_eq!(package.version.as_deref(), Some("1:14.2.0-19+b1~x"));
    }
}
