//! The few lines of DER (X.690) that certificates and revocation lists have outside their signed part, and Intel's
//! extension inside it.

/// One value with its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tlv<'a> {
    pub(crate) tag: u8,
    pub(crate) value: &'a [u8],
}

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const SEQUENCE: u8 = 0x30;

/// SEQUENCE { OBJECT IDENTIFIER ecdsa-with-SHA256 } (RFC 5758, 3.2: without parameters).
pub(crate) const ECDSA_WITH_SHA256: [u8; 12] = [
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];

/// Takes one value with a definite, shortest length of at most 2^24 - 1 off the front.
pub(crate) fn take<'a>(bytes: &mut &'a [u8]) -> Option<Tlv<'a>> {
    let (tag, length, header) = match **bytes {
        [tag, low @ 0..=0x7f, ..] => (tag, usize::from(low), 2),
        [tag, 0x81, low @ 0x80..=0xff, ..] => (tag, usize::from(low), 3),
        [tag, 0x82, high @ 1..=0xff, low, ..] => (tag, usize::from(u16::from_be_bytes([high, low])), 4),
        [tag, 0x83, high @ 1..=0xff, middle, low, ..] => {
            (tag, u32::from_be_bytes([0, high, middle, low]) as usize, 5)
        }
        _ => return None,
    };
    let value = bytes.get(header..header + length)?;
    *bytes = &bytes[header + length..];
    Some(Tlv { tag, value })
}

/// The value of exactly one TLV with this tag and nothing after it.
pub(crate) fn only(tag: u8, mut bytes: &[u8]) -> Option<&[u8]> {
    let tlv = take(&mut bytes)?;
    (tlv.tag == tag && bytes.is_empty()).then_some(tlv.value)
}

/// The signed part (with its header) and the signature of the one DER encoding of SEQUENCE { signed,
/// ecdsa-with-SHA256, BIT STRING signature }: nothing around the signed part can be changed.
pub(crate) fn envelope(whole: &[u8]) -> Option<(&[u8], &[u8])> {
    let content = only(SEQUENCE, whole)?;
    let mut rest = content;
    take(&mut rest)?;
    let signed = &content[..content.len() - rest.len()];
    let bits = only(BIT_STRING, rest.strip_prefix(&ECDSA_WITH_SHA256)?)?;
    // The first byte of a BIT STRING counts its unused bits.
    match bits.split_first()? {
        (0, signature) => Some((signed, signature)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shortest_length_is_read() {
        let read = |mut bytes: &[u8]| take(&mut bytes).map(|tlv| tlv.value.len());
        assert_eq!(read(&[4, 1, 9]), Some(1));
        assert_eq!(read(&[4, 0x81, 1, 9]), None);
        assert_eq!(read(&[4, 0x82, 0, 1, 9]), None);
        assert_eq!(read(&[4, 0x80]), None);
        assert_eq!(read(&[4, 2, 9]), None);
        assert_eq!(read(&[4]), None);
        assert_eq!(read(&[[4, 0x81, 0x80].as_slice(), &[0; 128]].concat()), Some(128));
        assert_eq!(read(&[[4, 0x82, 1, 0].as_slice(), &[0; 256]].concat()), Some(256));
        assert_eq!(
            read(&[[4, 0x83, 1, 0, 0].as_slice(), &[0; 65536]].concat()),
            Some(65536)
        );
        assert_eq!(read(&[[4, 0x83, 0, 1, 0].as_slice(), &[0; 256]].concat()), None);
    }

    #[test]
    fn only_refuses_what_follows() {
        assert_eq!(only(4, &[4, 1, 9]), Some([9].as_slice()));
        assert_eq!(only(4, &[4, 1, 9, 0]), None);
        assert_eq!(only(5, &[4, 1, 9]), None);
    }
}
