//! Inputs from folders and servers that are wrong, short, too long or not there.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use super::*;
use crate::lock::tests::locked;

/// More than the buffers between two programs hold, and little enough for a test's disk.
const FLOOD_BYTES: usize = 256 * 1024 * 1024;

/// No mirrors and an archive that is a folder on this machine: the tests touch no network.
pub(super) fn offline(cache: &Path, archive: &Path) -> Sources {
    let mirrors = OnceLock::new();
    mirrors.set(vec![]).unwrap();
    Sources {
        archive: format!("file://{}", archive.display()),
        mirrors,
        ..Sources::new(None, cache, "20260101T000000Z")
    }
}

/// What lies among the inputs.
fn left(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache.join("inputs")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// An archive on this machine's loopback that gives every request the same answer. Returns its address and the
/// first lines of the requests.
fn served(answer: &str) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (asked, requests) = mpsc::channel();
    let answer = answer.to_owned();
    // Ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            let _ = lines
                .take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
                .count();
            let _ = asked.send(first);
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (address, requests)
}

/// An archive on this machine's loopback whose answer goes on up to [`FLOOD_BYTES`], whatever its head says. Returns its
/// address and how much could be sent.
fn flood(head: &'static str) -> (String, mpsc::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (ended, sent) = mpsc::channel();
    // Ends with the test's process.
    thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let mut bytes = 0;
        let mut next = head.as_bytes().to_vec();
        while bytes < FLOOD_BYTES && stream.write_all(&next).is_ok() {
            bytes += next.len();
            next = vec![b'c'; 65_536];
        }
        let _ = ended.send(bytes);
    });
    (address, sent)
}

/// A file in the archive under the input's path.
pub(super) fn archived(archive: &Path, input: &LockedInput, content: &[u8]) {
    let folder = archive.join("archive/debian/20260101T000000Z").join(&input.pool);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(&input.file), content).unwrap();
}

#[test]
fn the_given_folder_comes_before_the_cache() {
    let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let input = locked(b"content");
    fs::create_dir(cache.path().join("inputs")).unwrap();
    let cached = cache.path().join("inputs").join(&input.file);
    fs::write(&cached, b"content").unwrap();
    let mut sources = offline(cache.path(), cache.path());
    sources.given = Some(given.path().to_owned());
    assert_eq!(sources.find(&input).unwrap(), cached);
    let own = given.path().join(&input.file);
    fs::write(&own, b"content").unwrap();
    assert_eq!(sources.find(&input).unwrap(), own);
}

#[test]
fn another_content_or_a_truncated_one_is_refused() {
    let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let input = locked(b"content");
    let mut sources = offline(cache.path(), cache.path());
    sources.given = Some(given.path().to_owned());
    for content in [b"CONTENT".as_slice(), b"conten", b""] {
        fs::write(given.path().join(&input.file), content).unwrap();
        let error = sources.find(&input).unwrap_err();
        assert!(matches!(error, InputError::WrongContent { .. }), "{error}");
    }
}

#[test]
fn a_missing_input_is_named_with_its_hash_and_its_place() {
    let cache = tempfile::tempdir().unwrap();
    let input = locked(b"content");
    let error = offline(cache.path(), cache.path()).find(&input).unwrap_err();
    let text = error.to_string();
    for part in [&input.file, &input.sha256.to_string(), "COCOON_INPUTS"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(left(cache.path()), [""; 0]);
}

#[test]
fn a_download_that_lies_or_stops_early_leaves_nothing_and_a_true_one_is_kept() {
    let (archive, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let input = locked(b"content");
    let sources = offline(cache.path(), archive.path());
    for content in [b"CONTENT".as_slice(), b"conten", b"content and more"] {
        archived(archive.path(), &input, content);
        let error = sources.find(&input).unwrap_err();
        assert!(matches!(error, InputError::Missing { .. }), "{error}");
        assert_eq!(left(cache.path()), [""; 0], "{error}");
    }
    archived(archive.path(), &input, b"content");
    let found = sources.find(&input).unwrap();
    assert_eq!(fs::read(&found).unwrap(), b"content");
    assert!(found.starts_with(cache.path()));
}

#[test]
fn an_archive_that_stops_early_or_has_another_file_over_http_leaves_nothing() {
    let input = locked(b"content");
    let http = |length: usize, body: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    };
    let absent = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
    for answer in [http(7, "CONTENT"), http(7, "con"), absent] {
        let cache = tempfile::tempdir().unwrap();
        let mut sources = offline(cache.path(), cache.path());
        let (archive, _requests) = served(&answer);
        sources.archive = archive;
        let error = sources.find(&input).unwrap_err();
        assert!(matches!(error, InputError::Missing { .. }), "{error}");
        assert_eq!(left(cache.path()), [""; 0], "{error}");
    }
    let cache = tempfile::tempdir().unwrap();
    let mut sources = offline(cache.path(), cache.path());
    let (archive, requests) = served(&http(7, "content"));
    sources.archive = archive;
    assert_eq!(fs::read(sources.find(&input).unwrap()).unwrap(), b"content");
    let LockedInput { pool, file, .. } = &input;
    let expected = format!("GET /archive/debian/20260101T000000Z/{pool}/{file} HTTP/1.1");
    assert_eq!(requests.recv().unwrap(), expected);
}

/// Otherwise whoever answers for a mirror fills the disk.
#[test]
fn an_archive_that_sends_without_end_is_left_at_the_locked_length() {
    let input = locked(b"content");
    let heads = [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n",
    ];
    for head in heads {
        let cache = tempfile::tempdir().unwrap();
        let mut sources = offline(cache.path(), cache.path());
        let (archive, sent) = flood(head);
        sources.archive = archive;
        let error = sources.find(&input).unwrap_err();
        assert!(matches!(error, InputError::Missing { .. }), "{error}");
        assert_eq!(left(cache.path()), [""; 0], "{error}");
        assert!(sent.recv().unwrap() < FLOOD_BYTES, "all of it was taken: {error}");
    }
}

#[test]
fn the_archive_is_asked_by_its_own_hash_but_believed_only_by_the_locked_one() {
    let (archive, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sha1 = "0123456789012345678901234567890123456789";
    let mut input = locked(b"content");
    input.archive_sha1 = Some(sha1.into());
    fs::create_dir(archive.path().join("file")).unwrap();
    let sources = offline(cache.path(), archive.path());
    fs::write(archive.path().join("file").join(sha1), b"CONTENT").unwrap();
    assert!(matches!(sources.find(&input), Err(InputError::Missing { .. })));
    fs::write(archive.path().join("file").join(sha1), b"content").unwrap();
    assert!(sources.find(&input).is_ok());
}

#[test]
fn no_mirror_is_asked_for_a_wheel_and_a_wrong_one_in_the_folder_is_refused() {
    let (given, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let input = LockedInput {
        kind: Kind::Wheel,
        pool: String::new(),
        file: "leaf-1-py3-none-any.whl".into(),
        ..locked(b"content")
    };
    let mut sources = offline(cache.path(), cache.path());
    assert!(sources.addresses(&input).is_empty());
    let text = sources.missing(&input, "").to_string();
    assert!(text.contains("has the wheel test 1; put the file into"), "{text}");
    sources.given = Some(given.path().to_owned());
    fs::write(given.path().join(&input.file), b"CONTENT").unwrap();
    assert!(matches!(
        sources.find(&input),
        Err(InputError::WrongContent { .. })
    ));
    fs::write(given.path().join(&input.file), b"content").unwrap();
    assert_eq!(sources.find(&input).unwrap(), given.path().join(&input.file));
}
