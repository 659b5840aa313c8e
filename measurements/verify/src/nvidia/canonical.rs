//! Canonical XML 1.1 without comments (W3C, 2 May 2008), as far as RIM files need it: a document of elements,
//! attributes and text, or the subtree of one element of it.
//!
//! What RIM files do not have is refused rather than canonicalised: comments and processing instructions,
//! attributes in the `xml` namespace (which a subtree would inherit). DTDs, and with them entities and default
//! attributes, are already refused by the parser. CDATA sections and character references come out of the parser
//! as plain text, which is what canonicalisation makes of them.

use roxmltree::{Document, Node, NodeId, NodeType};

/// The prefix `xml` is bound to this without a declaration.
const XML_NAMESPACE: &str = "http://www.w3.org/XML/1998/namespace";

/// Why a document is not canonicalised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CanonicalError {
    /// Something that RIM files do not have.
    #[error("{what} at offset {offset}")]
    Unexpected {
        /// What it is.
        what: &'static str,
        /// Where it is.
        offset: usize,
    },
}

/// The canonical form of `apex` and what is in it, without the subtree `left_out`.
///
/// A namespace is declared where it is used for the first time on the way down from `apex`; so `apex` declares all
/// that it inherits.
pub(super) fn canonicalize(
    document: &Document<'_>,
    apex: Node<'_, '_>,
    left_out: Option<NodeId>,
) -> Result<Vec<u8>, CanonicalError> {
    let text = document.input_text();
    let mut canonical = Vec::with_capacity(text.len());
    // Depth-first without recursion: an element's end tag waits on the stack for its children.
    let mut stack = vec![Step::Open(apex)];
    while let Some(step) = stack.pop() {
        match step {
            Step::Close(name) => {
                canonical.extend_from_slice(b"</");
                canonical.extend_from_slice(name.as_bytes());
                canonical.push(b'>');
            }
            Step::Open(node) if Some(node.id()) == left_out => {}
            Step::Open(node) => match node.node_type() {
                NodeType::Text => escape(node.text().unwrap_or_default(), Place::Text, &mut canonical),
                NodeType::Element => {
                    let name = qualified_name(node, text);
                    open(node, name, node.id() == apex.id(), text, &mut canonical)?;
                    stack.push(Step::Close(name));
                    stack.extend(node.children().rev().map(Step::Open));
                }
                NodeType::Comment | NodeType::PI | NodeType::Root => {
                    let (what, offset) = ("a comment or processing instruction", node.range().start);
                    return Err(CanonicalError::Unexpected { what, offset });
                }
            },
        }
    }
    Ok(canonical)
}

enum Step<'a, 'input> {
    Open(Node<'a, 'input>),
    Close(&'a str),
}

/// The name with its prefix, as it is written.
fn qualified_name<'a>(node: Node<'a, '_>, text: &'a str) -> &'a str {
    let written = &text[node.range()][1..];
    let end = written
        .find(|c: char| c.is_ascii_whitespace() || c == '>' || c == '/')
        .unwrap_or(written.len());
    &written[..end]
}

/// Start tag: namespaces by prefix, then attributes by namespace and local name (Canonical XML 1.1, 2.2).
fn open(
    node: Node<'_, '_>,
    name: &str,
    is_apex: bool,
    text: &str,
    canonical: &mut Vec<u8>,
) -> Result<(), CanonicalError> {
    canonical.push(b'<');
    canonical.extend_from_slice(name.as_bytes());
    for (prefix, uri) in declarations(node, is_apex) {
        canonical.extend_from_slice(b" xmlns");
        if !prefix.is_empty() {
            canonical.push(b':');
            canonical.extend_from_slice(prefix.as_bytes());
        }
        attribute_value(uri, canonical);
    }
    let mut attributes: Vec<_> = node.attributes().collect();
    attributes.sort_by_key(|attribute| (attribute.namespace().unwrap_or_default(), attribute.name()));
    for attribute in attributes {
        if attribute.namespace() == Some(XML_NAMESPACE) {
            let (what, offset) = ("an attribute of the xml namespace", attribute.range().start);
            return Err(CanonicalError::Unexpected { what, offset });
        }
        canonical.push(b' ');
        canonical.extend_from_slice(text[attribute.range_qname()].as_bytes());
        attribute_value(attribute.value(), canonical);
    }
    canonical.push(b'>');
    Ok(())
}

/// The namespaces that the parent does not have in the same way, sorted by prefix.
fn declarations<'a>(node: Node<'a, '_>, is_apex: bool) -> Vec<(&'a str, &'a str)> {
    let in_scope = |node: Node<'a, '_>| -> Vec<(&'a str, &'a str)> {
        let all = node
            .namespaces()
            .map(|namespace| (namespace.name().unwrap_or_default(), namespace.uri()));
        all.filter(|(prefix, _)| *prefix != "xml").collect()
    };
    let inherited = node
        .parent_element()
        .filter(|_| !is_apex)
        .map(in_scope)
        .unwrap_or_default();
    let mut declared = in_scope(node);
    let has_default = inherited
        .iter()
        .any(|(prefix, uri)| prefix.is_empty() && !uri.is_empty());
    // An empty default namespace says something only where it takes one back (2.3, namespace axis).
    declared.retain(|namespace| !inherited.contains(namespace) && (has_default || *namespace != ("", "")));
    declared.sort_unstable();
    declared
}

fn attribute_value(value: &str, canonical: &mut Vec<u8>) {
    canonical.extend_from_slice(b"=\"");
    escape(value, Place::Attribute, canonical);
    canonical.push(b'"');
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Text,
    Attribute,
}

fn escape(value: &str, place: Place, canonical: &mut Vec<u8>) {
    for byte in value.bytes() {
        match (byte, place) {
            (b'&', _) => canonical.extend_from_slice(b"&amp;"),
            (b'<', _) => canonical.extend_from_slice(b"&lt;"),
            (b'\r', _) => canonical.extend_from_slice(b"&#xD;"),
            (b'>', Place::Text) => canonical.extend_from_slice(b"&gt;"),
            (b'"', Place::Attribute) => canonical.extend_from_slice(b"&quot;"),
            (b'\t', Place::Attribute) => canonical.extend_from_slice(b"&#x9;"),
            (b'\n', Place::Attribute) => canonical.extend_from_slice(b"&#xA;"),
            _ => canonical.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn check(xml: &str, canonical: &str) {
        let document = Document::parse(xml).unwrap();
        let actual = canonicalize(&document, document.root_element(), None).unwrap();
        assert_eq!(String::from_utf8(actual).unwrap(), canonical);
    }

    #[test]
    fn follows_the_examples_of_the_recommendation() {
        // Canonical XML 1.1, 3.3 (start and end tags), without the DTD and its default attribute.
        check(
            "<doc>\n   <e1   />\n   <e2   ></e2>\n   <e3   name = \"elem3\"   id=\"elem3\"   />\n   \
             <e5 a:attr=\"out\" b:attr=\"sorted\" attr2=\"all\" attr=\"I'm\"\n      \
             xmlns:b=\"http://www.ietf.org\"\n      xmlns:a=\"http://www.w3.org\"\n      \
             xmlns=\"http://example.org\"/>\n   <e6 xmlns=\"\" xmlns:a=\"http://www.w3.org\">\n   </e6>\n</doc>",
            "<doc>\n   <e1></e1>\n   <e2></e2>\n   <e3 id=\"elem3\" name=\"elem3\"></e3>\n   \
             <e5 xmlns=\"http://example.org\" xmlns:a=\"http://www.w3.org\" xmlns:b=\"http://www.ietf.org\" \
             attr=\"I'm\" attr2=\"all\" b:attr=\"sorted\" a:attr=\"out\"></e5>\n   \
             <e6 xmlns:a=\"http://www.w3.org\">\n   </e6>\n</doc>",
        );
        // 3.4 (character modifications and references).
        check(
            "<doc>\n   <text>First line&#x0d;&#10;Second line</text>\n   <value>&#x32;</value>\n   \
             <compute><![CDATA[value>\"0\" && value<\"10\" ?\"valid\":\"error\"]]></compute>\n   \
             <compute expr='value>\"0\" &amp;&amp; value&lt;\"10\" ?\"valid\":\"error\"'>valid</compute>\n   \
             <norm attr=' &apos;   &#x20;&#13;&#xa;&#9;   &apos; '/>\n</doc>",
            "<doc>\n   <text>First line&#xD;\nSecond line</text>\n   <value>2</value>\n   \
             <compute>value&gt;\"0\" &amp;&amp; value&lt;\"10\" ?\"valid\":\"error\"</compute>\n   \
             <compute expr=\"value>&quot;0&quot; &amp;&amp; value&lt;&quot;10&quot; \
             ?&quot;valid&quot;:&quot;error&quot;\">valid</compute>\n   \
             <norm attr=\" '    &#xD;&#xA;&#x9;   ' \"></norm>\n</doc>",
        );
    }

    #[test]
    fn a_subtree_declares_what_it_inherits() {
        let xml = "<a xmlns=\"urn:d\" xmlns:p=\"urn:p\" xmlns:q=\"urn:q\"><p:b q:c=\"1\"><p:d/></p:b></a>";
        let document = Document::parse(xml).unwrap();
        let apex = document.root_element().first_element_child().unwrap();
        let canonical = canonicalize(&document, apex, None).unwrap();
        let expected = "<p:b xmlns=\"urn:d\" xmlns:p=\"urn:p\" xmlns:q=\"urn:q\" q:c=\"1\"><p:d></p:d></p:b>";
        assert_eq!(String::from_utf8(canonical).unwrap(), expected);
    }

    #[test]
    fn what_is_left_out_leaves_the_text_around_it() {
        let document = Document::parse("<a> <b/>\n<c>x</c>\t</a>").unwrap();
        let left_out = document
            .descendants()
            .find(|node| node.has_tag_name("b"))
            .unwrap()
            .id();
        let canonical = canonicalize(&document, document.root_element(), Some(left_out)).unwrap();
        assert_eq!(canonical, b"<a> \n<c>x</c>\t</a>");
    }

    #[test]
    fn a_comment_that_would_not_be_signed_is_refused() {
        let document = Document::parse("<a>4<!-- -->2</a>").unwrap();
        let refused = canonicalize(&document, document.root_element(), None);
        assert!(
            matches!(refused, Err(CanonicalError::Unexpected { offset: 4, .. })),
            "{refused:?}"
        );
    }
}
