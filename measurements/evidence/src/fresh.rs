//! Fresh evidence for many verifiers at once: one quote over the root of a hash tree, to each its path.
//!
//! A quote takes tens of milliseconds, so requests that come while one is being made share the next. Each
//! request is a leaf ([`crate::FreshBinding::leaf`]); leaves and inner nodes are hashed apart, as in RFC 9162,
//! section 2.1.1, so that no node can be shown as somebody's request. The quote binds root and number of
//! leaves; a path proves that this very request was among them, and tells nothing about the others.

use minicbor::{Decode, Encode, bytes::ByteArray};

use crate::{BUNDLE_BYTES_MAX, Digest48, EvidenceBundle, ReportData, binding};

/// Requests that share a quote at most. A guest has fewer connections than that.
pub const FRESH_REQUESTS_MAX: usize = 1024;

/// A longer answer is refused before it is parsed: a bundle, and ten hashes of 48 bytes.
pub const FRESH_BYTES_MAX: usize = BUNDLE_BYTES_MAX + 1024;

const LEAF: &[u8] = &[0];
const NODE: &[u8] = &[1];
const DOMAIN: &[u8] = b"cocoon-fresh-v2";

/// One request for fresh evidence, as the tree holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreshLeaf(Digest48);

impl FreshLeaf {
    pub(crate) fn of(fields: &[&[u8]]) -> Self {
        let lengths: Vec<_> = fields
            .iter()
            .map(|field| (field.len() as u64).to_le_bytes())
            .collect();
        let parts = lengths
            .iter()
            .zip(fields)
            .flat_map(|(length, field)| [length.as_slice(), field]);
        Self(Digest48::of_parts(std::iter::once(LEAF).chain(parts)))
    }
}

/// The requests that share one quote.
#[derive(Debug)]
pub struct FreshTree {
    /// Leaves first, the root last. A node without sibling goes up as it is.
    levels: Vec<Vec<Digest48>>,
}

/// Why requests cannot share a quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a quote is shared by 1 to {FRESH_REQUESTS_MAX} requests, not by {requests}")]
pub struct FreshTreeError {
    requests: usize,
}

impl FreshTree {
    /// The tree of these requests, in this order.
    ///
    /// # Errors
    /// There are none, or more than [`FRESH_REQUESTS_MAX`].
    pub fn new(leaves: &[FreshLeaf]) -> Result<Self, FreshTreeError> {
        if !(1..=FRESH_REQUESTS_MAX).contains(&leaves.len()) {
            let requests = leaves.len();
            return Err(FreshTreeError { requests });
        }
        let mut level: Vec<_> = leaves.iter().map(|leaf| leaf.0).collect();
        let mut levels = vec![];
        while level.len() > 1 {
            let above = level.chunks(2).map(|pair| match pair {
                [left, right] => node(left, right),
                rest => rest[0],
            });
            let above = above.collect();
            levels.push(std::mem::replace(&mut level, above));
        }
        levels.push(level);
        Ok(Self { levels })
    }

    /// What the quote for these requests has to bind.
    pub fn report_data(&self) -> ReportData {
        let root = self.levels.last().expect("there is always a root")[0];
        report_data(self.requests(), &root)
    }

    /// The answer to the request at `position`, given a bundle whose quote binds [`Self::report_data`].
    ///
    /// # Panics
    /// There is no such request.
    pub fn answer(&self, position: usize, bundle: EvidenceBundle) -> FreshEvidence {
        FreshEvidence {
            bundle,
            position: position as u32,
            requests: self.requests(),
            path: self.path(position),
        }
    }

    /// What stands before and behind the bundle's own encoding in that of [`Self::answer`]. Answers that are on their
    /// way to many at once then hold one bundle together, which can be a quarter of a megabyte.
    ///
    /// # Panics
    /// There is no such request.
    pub fn encode_around(&self, position: usize) -> ([u8; 1], Vec<u8>) {
        /// An array of four items (RFC 8949, section 3.1).
        const ARRAY_OF_4: u8 = 0x84;
        let mut behind = minicbor::Encoder::new(vec![]);
        behind
            .u32(position as u32)
            .and_then(|behind| behind.u32(self.requests()))
            .and_then(|behind| behind.encode(self.path(position)))
            .expect("encoding into memory cannot fail");
        ([ARRAY_OF_4], behind.into_writer())
    }

    fn requests(&self) -> u32 {
        self.levels[0].len() as u32
    }

    fn path(&self, position: usize) -> Vec<ByteArray<48>> {
        assert!(position < self.levels[0].len(), "there is no such request");
        let siblings = self.levels.iter().enumerate().filter_map(|(height, level)| {
            let sibling = (position >> height) ^ 1;
            level.get(sibling).map(|digest| ByteArray::from(digest.0))
        });
        siblings.collect()
    }
}

/// The answer to one request: the evidence that all share, and the way from this request to its root.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FreshEvidence {
    /// What the guest presents.
    #[n(0)]
    pub bundle: EvidenceBundle,
    #[n(1)]
    position: u32,
    #[n(2)]
    requests: u32,
    #[n(3)]
    path: Vec<ByteArray<48>>,
}

/// Why bytes are not an answer to a request for fresh evidence.
#[derive(Debug, thiserror::Error)]
pub enum FreshEvidenceError {
    /// Over [`FRESH_BYTES_MAX`].
    #[error("the fresh evidence has {bytes} bytes, at most {FRESH_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not the CBOR that [`FreshEvidence::encode`] writes.
    #[error("the fresh evidence is not well formed")]
    Malformed(#[source] minicbor::decode::Error),
    /// The same value in another encoding, or bytes after the end.
    #[error("the fresh evidence is not in its one canonical encoding")]
    NotCanonical,
    /// The path is not that of a leaf in a tree of this size.
    #[error("no tree of {requests} requests has a path of {hashes} hashes at position {position}")]
    Path {
        /// Where the leaf is said to be.
        position: u32,
        /// How many leaves there are said to be.
        requests: u32,
        /// Length of the path.
        hashes: usize,
    },
}

impl FreshEvidence {
    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into memory cannot fail")
    }

    /// Parses bytes from the network.
    ///
    /// # Errors
    /// See [`FreshEvidenceError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FreshEvidenceError> {
        if bytes.len() > FRESH_BYTES_MAX {
            return Err(FreshEvidenceError::TooLarge { bytes: bytes.len() });
        }
        let fresh: Self = minicbor::decode(bytes).map_err(FreshEvidenceError::Malformed)?;
        if fresh.encode() != bytes {
            return Err(FreshEvidenceError::NotCanonical);
        }
        let (position, requests) = (fresh.position, fresh.requests);
        let hashes = fresh.path.len();
        let in_bounds = position < requests && requests as usize <= FRESH_REQUESTS_MAX;
        if !in_bounds || siblings(position, requests).count() != hashes {
            return Err(FreshEvidenceError::Path {
                position,
                requests,
                hashes,
            });
        }
        Ok(fresh)
    }

    /// What the quote in the bundle binds if the request was `leaf`.
    pub fn report_data(&self, leaf: &FreshLeaf) -> ReportData {
        let steps = siblings(self.position, self.requests).zip(&self.path);
        let root = steps.fold(leaf.0, |hash, (side, sibling)| {
            let sibling = Digest48(**sibling);
            match side {
                Side::Left => node(&sibling, &hash),
                Side::Right => node(&hash, &sibling),
            }
        });
        report_data(self.requests, &root)
    }
}

enum Side {
    Left,
    Right,
}

/// On which side each sibling stands, on the way from a leaf to the root.
fn siblings(position: u32, requests: u32) -> impl Iterator<Item = Side> {
    let levels = std::iter::successors(Some((position, requests)), |(at, width)| {
        Some((at >> 1, width.div_ceil(2)))
    });
    let below_root = levels.take_while(|(_, width)| *width > 1);
    below_root.filter_map(|(at, width)| match at & 1 {
        1 => Some(Side::Left),
        _ if at + 1 < width => Some(Side::Right),
        _ => None,
    })
}

fn node(left: &Digest48, right: &Digest48) -> Digest48 {
    Digest48::of_parts([NODE, left.as_bytes(), right.as_bytes()])
}

fn report_data(requests: u32, root: &Digest48) -> ReportData {
    binding::report_data(DOMAIN, &[&requests.to_le_bytes(), root.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest32, EventLog, FreshBinding, Platform, Role};

    fn bundle() -> EvidenceBundle {
        EvidenceBundle {
            platform: Platform::Tdx { quote: vec![7; 90] },
            events: EventLog::default(),
            gpu: vec![],
        }
    }

    fn binding(nonce: &[u8; 32]) -> FreshBinding<'_> {
        FreshBinding {
            nonce,
            exporter: &[2; 32],
            certificate: Digest32::of(b"certificate"),
            role: Role::Inference,
            log: Digest48::ZERO,
        }
    }

    fn leaves(count: usize) -> Vec<FreshLeaf> {
        (0..count)
            .map(|n| {
                let mut nonce = [0; 32];
                nonce[..8].copy_from_slice(&(n as u64).to_le_bytes());
                binding(&nonce).leaf()
            })
            .collect()
    }

    #[test]
    fn every_request_finds_its_way_to_the_root_of_its_quote_and_to_no_other() {
        for count in [1, 2, 3, 4, 5, 7, 8, 9, 33, FRESH_REQUESTS_MAX] {
            let leaves = leaves(count);
            let tree = FreshTree::new(&leaves).unwrap();
            for position in [0, count / 2, count - 1] {
                let sent = tree.answer(position, bundle()).encode();
                let (before, behind) = tree.encode_around(position);
                assert_eq!([&before, &*bundle().encode(), &behind].concat(), sent);
                let fresh = FreshEvidence::decode(&sent).unwrap();
                for (other, leaf) in leaves.iter().enumerate() {
                    let same = fresh.report_data(leaf) == tree.report_data();
                    assert_eq!(same, other == position, "{other} at {position} of {count}");
                }
            }
        }
        assert!(FreshTree::new(&[]).is_err());
        assert!(FreshTree::new(&leaves(FRESH_REQUESTS_MAX + 1)).is_err());
    }

    /// RFC 9162, section 2.1.1: the tree of five leaves, spelled out.
    #[test]
    fn the_tree_is_that_of_the_rfc() {
        let l: Vec<_> = leaves(5).iter().map(|leaf| leaf.0).collect();
        let four = node(&node(&l[0], &l[1]), &node(&l[2], &l[3]));
        let tree = FreshTree::new(&leaves(5)).unwrap();
        assert_eq!(tree.report_data(), report_data(5, &node(&four, &l[4])));
    }

    #[test]
    fn evidence_for_another_nonce_session_certificate_role_or_log_is_refused() {
        let asked = binding(&[1; 32]);
        let tree = FreshTree::new(&[asked.leaf(), binding(&[9; 32]).leaf()]).unwrap();
        let answer = tree.answer(0, bundle());
        assert_eq!(answer.report_data(&asked.leaf()), tree.report_data());
        let others = [
            binding(&[3; 32]),
            FreshBinding {
                exporter: &[3; 32],
                ..asked.clone()
            },
            FreshBinding {
                certificate: Digest32::of(b"other"),
                ..asked.clone()
            },
            FreshBinding {
                log: Digest48::of(b"other"),
                ..asked.clone()
            },
        ];
        for other in others {
            assert_ne!(answer.report_data(&other.leaf()), tree.report_data(), "{other:?}");
        }
    }

    /// Who controls nonces could try to have an inner node taken for a request, or a request for an inner node.
    #[test]
    fn a_node_shown_as_a_request_is_refused() {
        let leaves = leaves(4);
        let tree = FreshTree::new(&leaves).unwrap();
        let inner = tree.levels[1][0];
        let shorter = FreshEvidence {
            bundle: bundle(),
            position: 0,
            requests: 2,
            path: vec![ByteArray::from(tree.levels[1][1].0)],
        };
        assert_ne!(shorter.report_data(&FreshLeaf(inner)), tree.report_data());
        let both = [leaves[0].0.as_bytes().as_slice(), leaves[1].0.as_bytes()].concat();
        assert_ne!(FreshLeaf::of(&[&both]).0, inner);
        assert_ne!(Digest48::of_parts([LEAF, both.as_slice()]), inner);
    }

    #[test]
    fn a_path_that_is_cut_or_prolonged_or_of_another_place_is_refused() {
        let tree = FreshTree::new(&leaves(5)).unwrap();
        let honest = tree.answer(2, bundle());
        let refused = |change: fn(&mut FreshEvidence)| {
            let mut fresh = honest.clone();
            change(&mut fresh);
            matches!(
                FreshEvidence::decode(&fresh.encode()),
                Err(FreshEvidenceError::Path { .. })
            )
        };
        assert!(refused(|fresh| fresh.path.truncate(2)));
        assert!(refused(|fresh| fresh.path.push(ByteArray::from([0; 48]))));
        assert!(refused(|fresh| fresh.position = 4));
        assert!(refused(|fresh| fresh.position = 5));
        assert!(refused(|fresh| fresh.requests = 0));
        assert!(refused(|fresh| fresh.requests = 4));
        assert!(refused(|fresh| fresh.requests = u32::MAX));
        let mut moved = honest.clone();
        moved.position = 3;
        let moved = FreshEvidence::decode(&moved.encode()).unwrap();
        assert_ne!(moved.report_data(&leaves(5)[2]), tree.report_data());
    }

    #[test]
    fn truncated_prolonged_and_oversized_answers_are_refused() {
        let tree = FreshTree::new(&leaves(3)).unwrap();
        let sent = tree.answer(1, bundle()).encode();
        for cut in 0..sent.len() {
            assert!(FreshEvidence::decode(&sent[..cut]).is_err(), "cut at {cut}");
        }
        let longer = [sent, vec![0]].concat();
        assert!(matches!(
            FreshEvidence::decode(&longer),
            Err(FreshEvidenceError::NotCanonical)
        ));
        let giant = vec![0; FRESH_BYTES_MAX + 1];
        assert!(matches!(
            FreshEvidence::decode(&giant),
            Err(FreshEvidenceError::TooLarge { .. })
        ));
    }
}
