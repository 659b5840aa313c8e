//! Revocation lists of the root CA and of the PCK CA (RFC 5280, section 5; Intel's profile 1.5, section 2). Read
//! here, entry by entry and in place: a library's tree of a list costs more than the check of its signature.

use x509_parser::{oid_registry::Oid, prelude::FromDer as _, time::ASN1Time};

use super::{
    certificate::Certificate,
    der::{self, Tlv},
};

/// Intel's longest has 4 KiB; it grows with every leaked platform key.
pub(crate) const REVOCATION_LIST_BYTES_MAX: usize = 128 * 1024;

/// Why bytes are not a revocation list of a CA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevocationListError {
    /// Over the limit.
    #[error("{0} bytes, at most {REVOCATION_LIST_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Not X.509.
    #[error("not an X.509 revocation list: {0}")]
    Malformed(&'static str),
    /// Bytes outside the signed part that could be other ones.
    #[error("the envelope around its signed part is not exact DER with ecdsa-with-SHA256")]
    Envelope,
    /// Somebody else's.
    #[error("not the list of \"{0}\", or not signed by it")]
    Issuer(String),
    /// Without an end it would be valid forever.
    #[error("it has no nextUpdate")]
    NoNextUpdate,
    /// It means something that is not understood.
    #[error("it has the unknown critical extension {0}")]
    CriticalExtension(String),
}

/// A list that its CA signed.
#[derive(Debug, Clone)]
pub(crate) struct RevocationList {
    /// revokedCertificates, every entry of which was read once.
    entries: Vec<u8>,
    /// RFC 5280, 5.2.3; 0 if the list has none.
    pub(crate) number: u64,
    pub(crate) this_update_s: u64,
    pub(crate) next_update_s: u64,
}

impl RevocationList {
    /// One P-256 check.
    pub(crate) fn verify(der: &[u8], ca: &Certificate) -> Result<Self, RevocationListError> {
        if der.len() > REVOCATION_LIST_BYTES_MAX {
            return Err(RevocationListError::TooLarge(der.len()));
        }
        let (signed, signature) = der::envelope(der).ok_or(RevocationListError::Envelope)?;
        let list = Signed::read(signed)?;
        if !ca.is_ca() || list.issuer != ca.subject() || !ca.key().signed_der(signed, signature) {
            return Err(RevocationListError::Issuer(ca.name()));
        }
        for entry in Entries(list.entries) {
            entry?.check_extensions()?;
        }
        Ok(Self {
            entries: list.entries.to_vec(),
            number: check_extensions(list.extensions)?,
            this_update_s: seconds(list.this_update)?,
            next_update_s: seconds(list.next_update.ok_or(RevocationListError::NoNextUpdate)?)?,
        })
    }

    pub(crate) fn revokes(&self, certificate: &Certificate) -> bool {
        let revokes = |entry: Entry<'_>| entry.serial == certificate.serial();
        // `verify` has read every entry; one that cannot be read would revoke everything.
        Entries(&self.entries).any(|entry| entry.map_or(true, revokes))
    }
}

fn malformed<T>(what: &'static str) -> Result<T, RevocationListError> {
    Err(RevocationListError::Malformed(what))
}

const VERSION_2: [u8; 3] = [der::INTEGER, 1, 1];
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT Extensions`.
const EXTENSIONS: u8 = 0xa0;
/// 2.5.29.20 and 2.5.29.21.
const CRL_NUMBER: [u8; 3] = [0x55, 0x1d, 20];
const REASON_CODE: [u8; 3] = [0x55, 0x1d, 21];

/// TBSCertList (RFC 5280, 5.1.2), cut at its fields.
struct Signed<'a> {
    /// With its header, as certificates have it.
    issuer: &'a [u8],
    this_update: &'a [u8],
    next_update: Option<&'a [u8]>,
    entries: &'a [u8],
    extensions: &'a [u8],
}

impl<'a> Signed<'a> {
    fn read(signed: &'a [u8]) -> Result<Self, RevocationListError> {
        let Some(content) = der::only(der::SEQUENCE, signed) else {
            return malformed("its signed part is not one sequence");
        };
        // Intel's lists are of version 2, the only one that has extensions.
        let content = content.strip_prefix(&VERSION_2);
        let Some(mut rest) = content.and_then(|content| content.strip_prefix(&der::ECDSA_WITH_SHA256)) else {
            return malformed("not of version 2, or signed with something else than ecdsa-with-SHA256");
        };
        let rest = &mut rest;
        let (Some(issuer), Some(this_update)) =
            (with_header(rest, is(der::SEQUENCE)), with_header(rest, is_time))
        else {
            return malformed("it has no issuer or no thisUpdate");
        };
        let list = Self {
            issuer,
            this_update,
            next_update: with_header(rest, is_time),
            entries: take_if(rest, is(der::SEQUENCE)).unwrap_or_default(),
            extensions: match take_if(rest, is(EXTENSIONS)) {
                None => &[],
                Some(explicit) => match der::only(der::SEQUENCE, explicit) {
                    Some(extensions) => extensions,
                    None => return malformed("its extensions are not one sequence"),
                },
            },
        };
        match rest {
            [] => Ok(list),
            _ => malformed("something follows its last field"),
        }
    }
}

fn is(tag: u8) -> impl Fn(u8) -> bool {
    move |found| found == tag
}

fn is_time(tag: u8) -> bool {
    matches!(tag, UTC_TIME | GENERALIZED_TIME)
}

fn take_if<'a>(rest: &mut &'a [u8], wanted: impl Fn(u8) -> bool) -> Option<&'a [u8]> {
    if !wanted(*rest.first()?) {
        return None;
    }
    der::take(rest).map(|tlv| tlv.value)
}

fn with_header<'a>(rest: &mut &'a [u8], wanted: impl Fn(u8) -> bool) -> Option<&'a [u8]> {
    let before = *rest;
    take_if(rest, wanted)?;
    Some(&before[..before.len() - rest.len()])
}

fn seconds(time: &[u8]) -> Result<u64, RevocationListError> {
    let parsed = ASN1Time::from_der(time).ok();
    parsed
        .filter(|(rest, _)| rest.is_empty())
        .and_then(|(_, time)| u64::try_from(time.timestamp()).ok())
        .ok_or(RevocationListError::Malformed("a date is none, or before 1970"))
}

/// revokedCertificates. Ends after the first that cannot be read.
struct Entries<'a>(&'a [u8]);

struct Entry<'a> {
    serial: &'a [u8],
    extensions: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, RevocationListError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let entry = take_if(&mut self.0, is(der::SEQUENCE)).and_then(Entry::read);
        if entry.is_none() {
            self.0 = &[];
        }
        Some(entry.ok_or(RevocationListError::Malformed(
            "an entry is not serial number, date and extensions",
        )))
    }
}

impl<'a> Entry<'a> {
    fn read(mut rest: &'a [u8]) -> Option<Self> {
        let serial = take_if(&mut rest, is(der::INTEGER))?;
        take_if(&mut rest, is_time)?;
        let extensions = take_if(&mut rest, is(der::SEQUENCE)).unwrap_or_default();
        rest.is_empty().then_some(Self { serial, extensions })
    }

    fn check_extensions(&self) -> Result<(), RevocationListError> {
        check_extensions(self.extensions).map(|_| ())
    }
}

/// Nothing that is critical may be unknown. The CRL number, 0 if there is none or none that counts.
fn check_extensions(mut rest: &[u8]) -> Result<u64, RevocationListError> {
    let mut number = 0;
    while !rest.is_empty() {
        let extension = take_if(&mut rest, is(der::SEQUENCE)).and_then(Extension::read);
        let Some(Extension { id, critical, value }) = extension else {
            return malformed("an extension is not an identifier and a value");
        };
        if id == CRL_NUMBER {
            number = der::only(der::INTEGER, value).map_or(0, integer);
        } else if critical && id != REASON_CODE {
            return Err(RevocationListError::CriticalExtension(
                Oid::new(id.into()).to_id_string(),
            ));
        }
    }
    Ok(number)
}

struct Extension<'a> {
    id: &'a [u8],
    critical: bool,
    value: &'a [u8],
}

impl<'a> Extension<'a> {
    fn read(mut rest: &'a [u8]) -> Option<Self> {
        let id = take_if(&mut rest, is(der::OBJECT_IDENTIFIER))?;
        // DEFAULT FALSE is not written in DER; whatever is there is taken for TRUE.
        let critical = take_if(&mut rest, is(der::BOOLEAN)).is_some();
        let Tlv { tag, value } = der::take(&mut rest)?;
        (tag == der::OCTET_STRING && rest.is_empty()).then_some(Self { id, critical, value })
    }
}

fn integer(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    let bytes = bytes.strip_prefix(&[0]).unwrap_or(bytes);
    match wide.len().checked_sub(bytes.len()) {
        Some(start) => wide[start..].copy_from_slice(bytes),
        None => return 0,
    }
    u64::from_be_bytes(wide)
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::CertificateRevocationList;

    use super::*;

    fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
        assert!(value.len() < 0x80);
        [&[tag, value.len() as u8], value].concat()
    }

    fn sequence(parts: &[&[u8]]) -> Vec<u8> {
        tlv(der::SEQUENCE, &parts.concat())
    }

    fn date() -> Vec<u8> {
        tlv(UTC_TIME, b"250101000000Z")
    }

    fn extension(id: &[u8], critical: bool) -> Vec<u8> {
        let critical = if critical {
            tlv(der::BOOLEAN, &[0xff])
        } else {
            Vec::new()
        };
        let (id, value) = (
            tlv(der::OBJECT_IDENTIFIER, id),
            tlv(der::OCTET_STRING, &[der::INTEGER, 1, 7]),
        );
        sequence(&[&id, &critical, &value])
    }

    fn entries(parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, RevocationListError> {
        let all = parts.concat();
        let serials = Entries(&all).map(|entry| {
            let entry = entry?;
            entry.check_extensions()?;
            Ok(entry.serial.to_vec())
        });
        serials.collect()
    }

    #[test]
    fn entries_are_serial_numbers_dates_and_extensions_and_nothing_else() {
        let serial = tlv(der::INTEGER, &[0, 0x99]);
        let plain = sequence(&[&serial, &date()]);
        let reason = sequence(&[&serial, &date(), &sequence(&[&extension(&REASON_CODE, true)])]);
        assert_eq!(entries(&[]), Ok(vec![]));
        assert_eq!(entries(&[&plain, &reason]), Ok(vec![vec![0, 0x99]; 2]));
        for broken in [
            serial.clone(),
            sequence(&[&serial]),
            sequence(&[&date(), &serial]),
            sequence(&[&serial, &date(), &serial]),
            plain[..plain.len() - 1].to_vec(),
            [&plain[..], &[0]].concat(),
        ] {
            let read = entries(&[&plain, &broken]);
            assert!(
                matches!(read, Err(RevocationListError::Malformed(_))),
                "{broken:02x?}"
            );
        }
    }

    #[test]
    fn a_critical_extension_that_is_not_understood_is_refused_in_list_and_entry() {
        // 2.5.29.27: the list holds changes only.
        let delta = [0x55, 0x1d, 27];
        let refused = RevocationListError::CriticalExtension("2.5.29.27".to_owned());
        assert_eq!(check_extensions(&extension(&delta, true)), Err(refused.clone()));
        assert_eq!(check_extensions(&extension(&delta, false)), Ok(0));
        assert_eq!(check_extensions(&extension(&CRL_NUMBER, false)), Ok(7));
        let serial = tlv(der::INTEGER, &[1]);
        let entry = sequence(&[&serial, &date(), &sequence(&[&extension(&delta, true)])]);
        assert_eq!(entries(&[&entry]), Err(refused));
    }

    #[test]
    fn a_field_too_many_or_too_few_is_refused() {
        let issuer = sequence(&[]);
        let head = [&VERSION_2[..], &der::ECDSA_WITH_SHA256, &issuer, &date()].concat();
        let list = |parts: &[&[u8]]| Signed::read(&sequence(parts)).map(|list| list.next_update.is_some());
        assert_eq!(list(&[&head]), Ok(false));
        assert_eq!(list(&[&head, &date()]), Ok(true));
        assert_eq!(list(&[&head, &date(), &issuer]), Ok(true));
        let rest = &head[VERSION_2.len()..];
        for broken in [
            vec![],
            vec![&head[..head.len() - 15]],
            vec![rest],
            vec![&[der::INTEGER, 1, 0][..], rest],
            vec![&head, &date(), &date()],
            vec![&head, &date(), &issuer, &issuer],
            vec![&head, &date(), &[EXTENSIONS, 0]],
        ] {
            let read = list(&broken);
            assert!(
                matches!(read, Err(RevocationListError::Malformed(_))),
                "{broken:02x?}"
            );
        }
    }

    #[test]
    fn a_number_that_is_wider_than_eight_bytes_is_none() {
        assert_eq!(integer(&[0x12, 0x34]), 0x1234);
        assert_eq!(integer(&[0, 0xff, 0, 0, 0, 0, 0, 0, 1]), 0xff00_0000_0000_0001);
        assert_eq!(integer(&[1; 9]), 0);
    }

    /// x509-parser reads the same of the lists that Intel published.
    #[test]
    fn agrees_with_another_parser_on_public_lists() {
        let Some(folder) = std::env::var_os("COCOON_VECTORS").map(std::path::PathBuf::from) else {
            eprintln!("skipped: COCOON_VECTORS does not name a folder with public test vectors");
            return;
        };
        let read = |name: &str| std::fs::read(folder.join("tdx").join(name)).unwrap();
        let mut lists = vec![
            read("collateral/google/rootcrl.der"),
            read("intel_qvl_sample_testroot/rootCaCrl.der"),
            read("intel_qvl_sample_testroot/intermediateCaCrl.der"),
        ];
        for name in ["tdx_quote", "tdx_quote_outdated", "tdx_quote_td15ex"] {
            let json = read(&format!("phala/{name}_collateral.json"));
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            for key in ["pck_crl", "root_ca_crl"] {
                lists.push(hex::decode(json[key].as_str().unwrap()).unwrap());
            }
        }
        let mut revoked = 0;
        for der in lists {
            let (_, theirs) = CertificateRevocationList::from_der(&der).unwrap();
            let (signed, signature) = der::envelope(&der).unwrap();
            assert_eq!(signed, theirs.tbs_cert_list.as_ref());
            assert_eq!(signature, &*theirs.signature_value.data);
            let ours = Signed::read(signed).unwrap();
            assert_eq!(ours.issuer, theirs.issuer().as_raw());
            let at = |time: &ASN1Time| time.timestamp() as u64;
            assert_eq!(seconds(ours.this_update), Ok(at(&theirs.last_update())));
            let next_update = theirs.next_update().unwrap();
            assert_eq!(seconds(ours.next_update.unwrap()), Ok(at(&next_update)));
            let number = theirs.crl_number().unwrap().try_into().unwrap();
            assert_eq!(check_extensions(ours.extensions), Ok(number));
            let serials: Vec<_> = theirs
                .iter_revoked_certificates()
                .map(|entry| entry.raw_serial().to_vec())
                .collect();
            assert_eq!(entries(&[ours.entries]).as_ref(), Ok(&serials));
            revoked += serials.len();
        }
        assert!(revoked > 100, "{revoked}");
    }
}
