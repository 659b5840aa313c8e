//! Length-prefixed frames: `u32le(length) || body`.
//!
//! A half-close does not survive every vsock backend, so a message never ends at end-of-file.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// A longer frame is refused before its body is read. The largest legitimate one carries a prompt.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed between frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The connection failed, or ended inside a frame.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// Over [`FRAME_BYTES_MAX`].
    #[error("a frame of {bytes} bytes was announced, at most {FRAME_BYTES_MAX} are allowed")]
    TooLarge {
        /// The announced length.
        bytes: usize,
    },
    /// The body is not the expected message. The parser's words are left out: they can quote the content.
    #[error("a frame holds no message that is expected here")]
    Malformed,
}

/// Encodes a message with its length.
///
/// # Errors
/// The message is over [`FRAME_BYTES_MAX`].
fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(|_| FrameError::Malformed)?;
    let bytes = frame.len() - 4;
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes });
    }
    frame[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
    Ok(frame)
}

fn body_length(head: [u8; 4]) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(head) as usize;
    if bytes > FRAME_BYTES_MAX {
        Err(FrameError::TooLarge { bytes })
    } else {
        Ok(bytes)
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|_| FrameError::Malformed)
}

/// Writes one message.
///
/// # Errors
/// See [`FrameError`].
pub fn write_frame<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), FrameError> {
    writer
        .write_all(&encode(message)?)
        .and_then(|()| writer.flush())
        .map_err(FrameError::Io)
}

/// Reads one message. The caller sets the deadline on the stream.
///
/// # Errors
/// See [`FrameError`]; [`FrameError::Closed`] only between frames.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> Result<T, FrameError> {
    let mut head = [0; 4];
    let first = loop {
        match reader.read(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other.map_err(FrameError::Io)?,
        }
    };
    if first == 0 {
        return Err(FrameError::Closed);
    }
    reader.read_exact(&mut head[first..]).map_err(FrameError::Io)?;
    let mut body = vec![0; body_length(head)?];
    reader.read_exact(&mut body).map_err(FrameError::Io)?;
    decode(&body)
}

/// [`write_frame`] on a tokio stream.
///
/// # Errors
/// See [`FrameError`].
#[cfg(feature = "tokio")]
pub async fn write_frame_async<T: Serialize>(
    writer: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &T,
) -> Result<(), FrameError> {
    use tokio::io::AsyncWriteExt as _;
    writer
        .write_all(&encode(message)?)
        .await
        .map_err(FrameError::Io)?;
    writer.flush().await.map_err(FrameError::Io)
}

/// [`read_frame`] on a tokio stream. Not cancel-safe: own the stream in one task.
///
/// # Errors
/// See [`FrameError`]; [`FrameError::Closed`] only between frames.
#[cfg(feature = "tokio")]
pub async fn read_frame_async<T: DeserializeOwned>(
    reader: &mut (impl tokio::io::AsyncRead + Unpin),
) -> Result<T, FrameError> {
    use tokio::io::AsyncReadExt as _;
    let mut head = [0; 4];
    let first = reader.read(&mut head).await.map_err(FrameError::Io)?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    reader
        .read_exact(&mut head[first..])
        .await
        .map_err(FrameError::Io)?;
    let mut body = vec![0; body_length(head)?];
    reader.read_exact(&mut body).await.map_err(FrameError::Io)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn round_trips_and_tells_the_end_from_a_cut() {
        let mut wire = vec![];
        write_frame(&mut wire, &"first").unwrap();
        write_frame(&mut wire, &"second").unwrap();
        let mut reader = wire.as_slice();
        assert_eq!(read_frame::<String>(&mut reader).unwrap(), "first");
        assert_eq!(read_frame::<String>(&mut reader).unwrap(), "second");
        assert!(matches!(
            read_frame::<String>(&mut reader),
            Err(FrameError::Closed)
        ));
        for cut in 1..11 {
            assert!(
                matches!(read_frame::<String>(&mut &wire[..cut]), Err(FrameError::Io(_))),
                "cut {cut}"
            );
        }
    }

    #[test]
    fn an_announced_giant_is_refused_before_its_body() {
        let error = read_frame::<String>(&mut [0xff; 4].as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_frame::<engine_like::Message>(&mut bytes.as_slice());
        }
    }

    mod engine_like {
        pub(super) type Message = crate::engine::FromEngine;
    }
}
