//! HTTP spoken by hand, for answers that no HTTP library would send.

use std::{io, time::Duration};

use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    time::sleep,
};

use super::{
    script::{Lie, Then},
    session::{Recorded, Session},
};

/// Between two pieces of what trickles.
pub(crate) const TRICKLE_PAUSE: Duration = Duration::from_millis(20);

/// Answers until the lie is told or the client goes.
pub(super) async fn serve(stream: Recorded, session: &Session, lie: &Lie) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (line, body) = read_request(&mut stream).await?;
        let lies = line == lie.to;
        let mut answer = vec![];
        if !lies || lie.after_the_truth {
            answer = honest(session, line, &body).await?;
        }
        if lies {
            answer.extend_from_slice(&lie.bytes);
        }
        stream.write_all(&answer).await?;
        stream.flush().await?;
        if lies {
            return end(&mut stream, lie.then).await;
        }
    }
}

async fn honest(session: &Session, line: String, body: &[u8]) -> io::Result<Vec<u8>> {
    let (head, body) = session.answer(line, body).await.into_parts();
    let body = body.collect().await?.to_bytes();
    let (status, length) = (head.status, body.len());
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
    Ok([head.as_bytes(), &body].concat())
}

async fn end(stream: &mut BufReader<Recorded>, then: Then) -> io::Result<()> {
    match then {
        Then::Close => stream.shutdown().await,
        Then::Hold => std::future::pending().await,
        Then::Flood(piece) => loop {
            stream.write_all(piece).await?;
        },
        Then::Trickle(piece) => loop {
            stream.write_all(piece).await?;
            stream.flush().await?;
            sleep(TRICKLE_PAUSE).await;
        },
    }
}

/// Method and path, and the body.
async fn read_request(stream: &mut BufReader<Recorded>) -> io::Result<(String, Vec<u8>)> {
    let mut head = vec![];
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            break;
        }
        head.push(line);
    }
    let length = head
        .iter()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.trim_end().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let line = head.first().unwrap().trim_end();
    Ok((line.trim_end_matches(" HTTP/1.1").to_owned(), body))
}
