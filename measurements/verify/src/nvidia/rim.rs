//! A reference integrity manifest (RIM): the measurements that NVIDIA publishes for one version of a driver or of
//! a firmware, as a SWID tag (ISO/IEC 19770-2:2015, TCG RIM Information Model 1.01) with an XML signature.
//!
//! The tree that is canonicalised and verified is the tree that the values are read from, and the places of all
//! elements are fixed: nothing outside the signature can be taken for something inside it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roxmltree::{Document, Node, ParsingOptions};

use super::canonical::{CanonicalError, canonicalize};
use super::certificate::{Certificate, CertificateError};
use super::spdm::MEASUREMENT_BYTES;

/// Most bytes of a RIM file; NVIDIA's have 20 to 30 KiB.
pub const RIM_BYTES_MAX: usize = 256 << 10;
/// Most elements, attributes and texts in it.
const NODES_MAX: u32 = 4096;
/// Most values that one measurement may have.
const ALTERNATIVES_MAX: usize = 32;
/// SPDM counts 254 measurements from 1, a RIM file from 0.
const INDEX_MAX: u8 = 253;
/// Most certificates in the signature.
const CERTIFICATES_MAX: usize = 8;

const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const SHA384: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const C14N11: &str = "http://www.w3.org/2006/12/xml-c14n11";
const ECDSA_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";
const DIGEST_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#sha384";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";

/// Why bytes are not a RIM file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RimError {
    /// More than [`RIM_BYTES_MAX`].
    #[error("{bytes} bytes, but a RIM file has at most {RIM_BYTES_MAX}")]
    TooLong {
        /// How many there are.
        bytes: usize,
    },
    /// Not UTF-8.
    #[error("is not UTF-8 at offset {offset}")]
    NotUtf8 {
        /// Where.
        offset: usize,
    },
    /// Not well-formed XML, or with a DTD.
    #[error("is not the XML of a RIM file: {0}")]
    Xml(String),
    /// An element is missing, is there twice, is somewhere else, or has the wrong content.
    #[error("{what} (element {element} at offset {offset})")]
    Structure {
        /// What is wrong.
        what: String,
        /// In which element.
        element: String,
        /// Where that is.
        offset: usize,
    },
    /// A certificate that is none.
    #[error("certificate {index} of the signature {error}")]
    Certificate {
        /// Which one.
        index: usize,
        /// Why.
        error: CertificateError,
    },
}

/// A RIM file that has the right form; nothing in it is true until its signature and chain are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rim {
    /// The version that the values are of: a driver's or a firmware's.
    pub version: String,
    /// `GPU` or `SWITCH`.
    pub edition: String,
    /// The chip, for example `GH100`.
    pub product: String,
    /// Active measurements: all values that each may have, by RIM index, from 0.
    pub measurements: BTreeMap<u8, Vec<[u8; MEASUREMENT_BYTES]>>,
    /// The signer's chain, leaf first, DER.
    pub certificates: Vec<Vec<u8>>,
    signature: RimSignature,
}

/// What the signature states and what the document gives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RimSignature {
    stated_digest: Vec<u8>,
    actual_digest: Vec<u8>,
    signed_info: Vec<u8>,
    value: Vec<u8>,
}

impl Rim {
    /// Takes a whole RIM file apart.
    pub fn parse(bytes: &[u8]) -> Result<Self, RimError> {
        if bytes.len() > RIM_BYTES_MAX {
            return Err(RimError::TooLong { bytes: bytes.len() });
        }
        let text = std::str::from_utf8(bytes).map_err(|error| RimError::NotUtf8 {
            offset: error.valid_up_to(),
        })?;
        let options = ParsingOptions {
            allow_dtd: false,
            nodes_limit: NODES_MAX,
            ..ParsingOptions::default()
        };
        let parsed = Document::parse_with_options(text, options);
        let document = parsed.map_err(|error| RimError::Xml(error.to_string()))?;
        let root = document.root_element();
        named(root, SWID, "SoftwareIdentity")?;
        let meta = only_child(root, SWID, "Meta")?;
        let signature = only_child(root, DSIG, "Signature")?;
        Ok(Self {
            version: attribute(meta, "colloquialVersion")?.to_owned(),
            edition: attribute(meta, "edition")?.to_owned(),
            product: attribute(meta, "product")?.to_owned(),
            measurements: read_measurements(only_child(root, SWID, "Payload")?)?,
            certificates: read_certificates(signature)?,
            signature: RimSignature::read(&document, signature)?,
        })
    }

    /// Whether the document is what was signed, and the leaf's key signed it.
    pub(super) fn verify(&self, leaf: &Certificate<'_>) -> Result<(), &'static str> {
        let RimSignature {
            stated_digest,
            actual_digest,
            signed_info,
            value,
        } = &self.signature;
        if stated_digest != actual_digest {
            return Err("the document was changed: its SHA-384 is not the one that was signed");
        }
        let verified = leaf.verify_fixed(signed_info, value);
        verified.then_some(()).ok_or("the signature is not the signer's")
    }
}

impl RimSignature {
    /// XML Signature Syntax and Processing 1.1, 4: one enveloped signature over the whole document, with exactly
    /// the algorithms that NVIDIA uses.
    fn read(document: &Document<'_>, signature: Node<'_, '_>) -> Result<Self, RimError> {
        let info = only_child(signature, DSIG, "SignedInfo")?;
        let reference = only_child(info, DSIG, "Reference")?;
        if !attribute(reference, "URI")?.is_empty() {
            return Err(wrong(
                reference,
                "refers to something else than the whole document",
            ));
        }
        algorithm(only_child(info, DSIG, "CanonicalizationMethod")?, C14N11)?;
        algorithm(only_child(info, DSIG, "SignatureMethod")?, ECDSA_SHA384)?;
        algorithm(only_child(reference, DSIG, "DigestMethod")?, DIGEST_SHA384)?;
        let transforms: Vec<_> = only_child(reference, DSIG, "Transforms")?
            .children()
            .filter(Node::is_element)
            .collect();
        let [enveloped, canonical] = transforms[..] else {
            return Err(wrong(reference, "does not have exactly two transforms"));
        };
        for (transform, name) in [(enveloped, ENVELOPED), (canonical, C14N11)] {
            named(transform, DSIG, "Transform")?;
            algorithm(transform, name)?;
        }
        let uncanonical = |error: CanonicalError| wrong(info, &format!("the document has {error}"));
        let signed =
            canonicalize(document, document.root_element(), Some(signature.id())).map_err(uncanonical)?;
        Ok(Self {
            stated_digest: base64_text(only_child(reference, DSIG, "DigestValue")?)?,
            actual_digest: sha384(&signed),
            signed_info: canonicalize(document, info, None).map_err(uncanonical)?,
            value: base64_text(only_child(signature, DSIG, "SignatureValue")?)?,
        })
    }
}

fn sha384(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, bytes)
        .as_ref()
        .to_vec()
}

fn read_certificates(signature: Node<'_, '_>) -> Result<Vec<Vec<u8>>, RimError> {
    let data = only_child(only_child(signature, DSIG, "KeyInfo")?, DSIG, "X509Data")?;
    let mut certificates = Vec::new();
    for (index, node) in data.children().filter(Node::is_element).enumerate() {
        named(node, DSIG, "X509Certificate")?;
        if index >= CERTIFICATES_MAX {
            return Err(wrong(
                data,
                &format!("has more than {CERTIFICATES_MAX} certificates"),
            ));
        }
        let der = base64_text(node)?;
        Certificate::parse(&der).map_err(|error| RimError::Certificate { index, error })?;
        certificates.push(der);
    }
    Ok(certificates)
}

fn read_measurements(payload: Node<'_, '_>) -> Result<BTreeMap<u8, Vec<[u8; MEASUREMENT_BYTES]>>, RimError> {
    let mut measurements = BTreeMap::new();
    let mut seen = [false; INDEX_MAX as usize + 1];
    for resource in payload.children().filter(Node::is_element) {
        named(resource, SWID, "Resource")?;
        if attribute(resource, "type")? != "Measurement" {
            return Err(wrong(resource, "is not a measurement"));
        }
        let index = number(resource, "index", usize::from(INDEX_MAX))?;
        if std::mem::replace(&mut seen[index], true) {
            return Err(wrong(
                resource,
                &format!("measurement {index} is there for the second time"),
            ));
        }
        let values = read_values(resource)?;
        match attribute(resource, "active")? {
            "True" => measurements.insert(index as u8, values),
            "False" => None,
            other => {
                return Err(wrong(
                    resource,
                    &format!("active is \"{other}\", neither True nor False"),
                ));
            }
        };
    }
    Ok(measurements)
}

fn read_values(resource: Node<'_, '_>) -> Result<Vec<[u8; MEASUREMENT_BYTES]>, RimError> {
    if number(resource, "size", usize::MAX)? != MEASUREMENT_BYTES {
        return Err(wrong(resource, &format!("size is not {MEASUREMENT_BYTES}")));
    }
    let count = number(resource, "alternatives", ALTERNATIVES_MAX)?;
    if count == 0 {
        return Err(wrong(resource, "has no value"));
    }
    let value = |alternative: usize| {
        let name = format!("Hash{alternative}");
        let text = resource.attribute((SHA384, name.as_str()));
        let mut value = [0; MEASUREMENT_BYTES];
        let decoded = text.map(|text| hex::decode_to_slice(text, &mut value));
        match decoded {
            Some(Ok(())) => Ok(value),
            _ => Err(wrong(
                resource,
                &format!("{name} is not {MEASUREMENT_BYTES} bytes in hexadecimal"),
            )),
        }
    };
    (0..count).map(value).collect()
}

fn only_child<'a, 'input>(
    parent: Node<'a, 'input>,
    namespace: &str,
    name: &str,
) -> Result<Node<'a, 'input>, RimError> {
    let mut children = parent
        .children()
        .filter(|child| child.has_tag_name((namespace, name)));
    match (children.next(), children.next()) {
        (Some(child), None) => Ok(child),
        (None, _) => Err(wrong(parent, &format!("has no {name}"))),
        (Some(_), Some(second)) => Err(wrong(second, "is there for the second time")),
    }
}

fn named(node: Node<'_, '_>, namespace: &str, name: &str) -> Result<(), RimError> {
    let fits = node.has_tag_name((namespace, name));
    fits.then_some(())
        .ok_or_else(|| wrong(node, &format!("is not {name} of {namespace}")))
}

fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str, RimError> {
    node.attribute(name)
        .ok_or_else(|| wrong(node, &format!("has no attribute {name}")))
}

fn number(node: Node<'_, '_>, name: &str, most: usize) -> Result<usize, RimError> {
    let text = attribute(node, name)?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = text.parse().ok().filter(|number| digits && *number <= most);
    parsed.ok_or_else(|| wrong(node, &format!("{name} is \"{text}\", not a number up to {most}")))
}

/// One algorithm and no parameters.
fn algorithm(node: Node<'_, '_>, expected: &str) -> Result<(), RimError> {
    match attribute(node, "Algorithm")? {
        actual if actual != expected => Err(wrong(node, &format!("uses {actual}, not {expected}"))),
        _ if node.has_children() => Err(wrong(node, "has parameters")),
        _ => Ok(()),
    }
}

fn base64_text(node: Node<'_, '_>) -> Result<Vec<u8>, RimError> {
    if node.children().any(|child| !child.is_text()) {
        return Err(wrong(node, "has something else than text"));
    }
    let text: String = node.children().filter_map(|child| child.text()).collect();
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD
        .decode(text)
        .map_err(|error| wrong(node, &format!("is not base64: {error}")))
}

fn wrong(node: Node<'_, '_>, what: &str) -> RimError {
    RimError::Structure {
        what: what.to_owned(),
        element: node.tag_name().name().to_owned(),
        offset: node.range().start,
    }
}
