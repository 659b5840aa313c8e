//! What a response carries: bytes that many responses share, or the cells of a stream.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::{answer::Stream, closing::UnderWay};

/// HTTP copies a frame before it writes it, for each connection: a peer that asks for much that all share, and reads
/// nothing, must not have it copied whole. A TLS record.
const FRAME_BYTES_MAX: usize = 16 * 1024;

/// A response's body.
pub(crate) struct Body {
    content: Content,
    answer: Option<UnderWay>,
}

enum Content {
    /// Bytes that others may hold as well.
    Shared(VecDeque<Bytes>),
    Stream(Box<Stream>),
}

impl Body {
    /// These bytes, one after the other.
    pub(crate) fn shared<const N: usize>(parts: [Bytes; N]) -> Self {
        Self::of(Content::Shared(parts.into()))
    }

    pub(crate) fn stream(stream: Stream) -> Self {
        Self::of(Content::Stream(Box::new(stream)))
    }

    fn of(content: Content) -> Self {
        let answer = None;
        Self { content, answer }
    }

    /// It is under way until the last frame is taken.
    pub(crate) fn is_answer(&mut self, answer: UnderWay) {
        self.answer = Some(answer);
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.get_mut().content {
            Content::Shared(parts) => Poll::Ready(next_frame(parts).map(|bytes| Ok(Frame::data(bytes)))),
            Content::Stream(stream) => stream
                .poll_cell(cx)
                .map(|cell| cell.map(|cell| cell.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Shared(parts) if parts.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Shared(parts) => {
                SizeHint::with_exact(parts.iter().map(|bytes| bytes.len() as u64).sum())
            }
            Content::Stream(_) => SizeHint::default(),
        }
    }
}

fn next_frame(parts: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let first = parts.front_mut()?;
    if first.len() > FRAME_BYTES_MAX {
        return Some(first.split_to(FRAME_BYTES_MAX));
    }
    parts.pop_front()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn what_many_ask_for_goes_out_in_small_frames_of_the_same_memory() {
        let large = Bytes::from(vec![7; 3 * FRAME_BYTES_MAX + 5]);
        let memory = large.as_ptr_range();
        let mut body = Body::shared([
            Bytes::from_static(b"head"),
            large.clone(),
            Bytes::from_static(b"tail"),
        ]);
        let whole = [b"head", &*large, b"tail"].concat();
        assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
        let mut sent = vec![];
        while let Some(frame) = body.frame().await {
            let bytes = frame.unwrap().into_data().unwrap();
            assert!(bytes.len() <= FRAME_BYTES_MAX);
            let is_copy = !memory.contains(&bytes.as_ptr());
            assert!(!is_copy || [&b"head"[..], b"tail"].contains(&&*bytes), "a copy");
            sent.extend(bytes);
            assert_eq!(body.size_hint().exact(), Some((whole.len() - sent.len()) as u64));
        }
        assert_eq!(sent, whole);
        assert!(body.is_end_stream());
    }
}
