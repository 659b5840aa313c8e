//! What was fetched once and kept in a folder.

use super::*;

/// A folder with what an honest service gave; the service has gone since.
fn kept(published: &Published) -> (tempfile::TempDir, Fetcher) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(published.pcs());
    let fetcher = fetcher(pcs(&server)).keep_in(folder.path().join("made"));
    fetcher.collateral(&KEY, published.from_s).unwrap();
    (folder, fetcher)
}

fn only_file(folder: &Path) -> PathBuf {
    let mut files = fs::read_dir(folder.join("made")).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none(), "no half file beside it");
    file
}

#[test]
fn what_was_kept_is_used_until_its_last_signed_second_without_the_service() {
    let Some(published) = Published::open() else {
        return;
    };
    let (folder, fetcher) = kept(&published);
    for now_s in [published.from_s, published.until_s] {
        let fetched = fetcher.collateral(&KEY, now_s).unwrap();
        assert_eq!(fetched.origin, Origin::Cache);
        published.assert_same(&fetched);
    }
    let name = only_file(folder.path());
    let name = name.file_name().unwrap().to_str().unwrap();
    assert!(
        name.starts_with("pcs-") && name.ends_with("-b0c06f000000-platform.json"),
        "{name}"
    );
}

#[test]
fn what_was_kept_is_not_used_a_second_later() {
    let Some(published) = Published::open() else {
        return;
    };
    let (_folder, fetcher) = kept(&published);
    let error = fetcher.collateral(&KEY, published.until_s + 1).unwrap_err();
    assert!(matches!(error, FetchError::Over { .. }), "{error:?}");
    assert_eq!(error.class(), Some(FailureClass::Tcb));
    let text = printed(error);
    for part in [
        "is kept, but must not be used",
        "is valid from",
        "make sure that it can be reached",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn what_was_kept_is_asked_for_again_when_it_has_expired() {
    let Some(published) = Published::open() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(published.pcs());
    let fetcher = fetcher(pcs(&server)).keep_in(folder.path());
    fetcher.collateral(&KEY, published.from_s).unwrap();
    fetcher.collateral(&KEY, published.from_s).unwrap();
    assert_eq!(server.asked().len(), 4);
    let error = fetcher.collateral(&KEY, published.until_s + 1).unwrap_err();
    assert!(matches!(error, FetchError::Over { .. }), "{error:?}");
    assert_eq!(server.asked().len(), 8);
}

#[test]
fn a_kept_file_that_somebody_changed_is_not_used() {
    let Some(published) = Published::open() else {
        return;
    };
    let (folder, fetcher) = kept(&published);
    let path = only_file(folder.path());
    let honest = fs::read(&path).unwrap();
    let text = String::from_utf8(honest.clone()).unwrap();
    for changed in [
        text.replacen("UpToDate", "OutOfDate", 1).into_bytes(),
        honest[..honest.len() / 2].to_vec(),
        Vec::new(),
        vec![b' '; 1 << 20],
    ] {
        fs::write(&path, &changed).unwrap();
        let error = fetcher.collateral(&KEY, published.from_s).unwrap_err();
        assert!(matches!(error, FetchError::Over { .. }), "{error:?}");
    }
    fs::write(&path, &honest).unwrap();
    fetcher.collateral(&KEY, published.from_s).unwrap();
}

#[test]
fn a_service_does_not_answer_for_another() {
    let Some(published) = Published::open() else {
        return;
    };
    let (folder, _) = kept(&published);
    let gone = Server::start(Routes::new());
    let other = fetcher(pcs(&gone)).keep_in(folder.path().join("made"));
    let error = other.collateral(&KEY, published.from_s).unwrap_err();
    assert!(matches!(error, FetchError::Http { .. }), "{error:?}");
}
