//! Memory for prompts: how much there is, and who gives it back when it is short.
//!
//! A prompt is counted from its head until its answer is recorded. To announce one costs nothing, so memory must not
//! be something that is kept by announcing: where it is short, those prompts are given up for the next that have been
//! arriving for longest. One that has arrived whole is kept. Order is by a counter: no clock decides.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// A bounded amount of memory.
pub(crate) struct Prompts(Mutex<Book>);

struct Book {
    free_bytes: usize,
    arriving: BTreeMap<u64, Announced>,
    counter: u64,
}

struct Announced {
    bytes: usize,
    /// Dropped, it tells the prompt's reader to stop.
    _stay: oneshot::Sender<()>,
}

/// A prompt that is being read; its memory is given back when this is dropped.
pub(crate) struct Arriving {
    prompts: Arc<Prompts>,
    id: u64,
}

/// Memory of a prompt that has arrived; given back when dropped.
pub(crate) struct Memory {
    prompts: Arc<Prompts>,
    bytes: usize,
}

impl Prompts {
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Book {
            free_bytes: bytes,
            arriving: BTreeMap::new(),
            counter: 0,
        })))
    }

    /// Sets memory aside for a prompt of at most so many bytes, and says what ends when it has to be given up. `None`
    /// if prompts that have arrived leave too little.
    pub(crate) fn begin(
        self: &Arc<Self>,
        bytes: usize,
    ) -> Option<(Arriving, impl Future<Output = ()> + use<>)> {
        let mut book = self.lock();
        book.free(bytes)?;
        book.free_bytes -= bytes;
        book.counter += 1;
        let id = book.counter;
        let (stay, told) = oneshot::channel();
        let _stay = stay;
        book.arriving.insert(id, Announced { bytes, _stay });
        let prompts = Arc::clone(self);
        // Nothing is ever sent: it ends with its sender.
        let told = async { drop(told.await) };
        Some((Arriving { prompts, id }, told))
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Gives up those that have been arriving for longest, if that helps.
    fn free(&mut self, bytes: usize) -> Option<()> {
        let arriving: usize = self.arriving.values().map(|announced| announced.bytes).sum();
        if self.free_bytes + arriving < bytes {
            return None;
        }
        while self.free_bytes < bytes {
            let (_, given_up) = self.arriving.pop_first()?;
            self.free_bytes += given_up.bytes;
        }
        Some(())
    }
}

impl Arriving {
    /// It has arrived, with so many of the bytes that were announced. `None` if it was given up meanwhile.
    pub(crate) fn arrived(self, bytes: usize) -> Option<Memory> {
        let mut book = self.prompts.lock();
        let announced = book.arriving.remove(&self.id)?;
        let bytes = bytes.min(announced.bytes);
        book.free_bytes += announced.bytes - bytes;
        let prompts = Arc::clone(&self.prompts);
        Some(Memory { prompts, bytes })
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut book = self.prompts.lock();
        if let Some(announced) = book.arriving.remove(&self.id) {
            book.free_bytes += announced.bytes;
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.prompts.lock().free_bytes += self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    fn is_over(told: impl Future<Output = ()>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(told).poll(&mut context).is_ready()
    }

    #[test]
    fn prompts_that_never_arrive_give_way_in_the_order_in_which_they_began() {
        let prompts = Prompts::new(10);
        let (first, first_told) = prompts.begin(4).unwrap();
        let (second, second_told) = prompts.begin(4).unwrap();
        let (third, third_told) = prompts.begin(6).unwrap();
        assert!(is_over(first_told) && !is_over(second_told) && !is_over(third_told));
        assert!(first.arrived(4).is_none(), "its memory is the third's");
        let kept = (second.arrived(4).unwrap(), third.arrived(6).unwrap());
        assert_eq!(prompts.lock().free_bytes, 0);
        drop(kept);
        assert_eq!(prompts.lock().free_bytes, 10);
    }

    #[test]
    fn what_has_arrived_is_kept_and_nobody_is_given_up_in_vain() {
        let prompts = Prompts::new(10);
        let (whole, _) = prompts.begin(6).unwrap();
        let whole = whole.arrived(6).unwrap();
        let (arriving, told) = prompts.begin(3).unwrap();
        assert!(prompts.begin(5).is_none());
        assert!(!is_over(told));
        drop((whole, arriving));
        assert!(prompts.begin(10).is_some());
    }

    /// Of a body in chunks nobody knows the length before its end.
    #[test]
    fn a_prompt_takes_what_it_has_and_no_longer_what_it_announced() {
        let prompts = Prompts::new(10);
        let (announced, _) = prompts.begin(10).unwrap();
        let _short = announced.arrived(2).unwrap();
        assert!(prompts.begin(9).is_none());
        assert!(prompts.begin(8).is_some());
        assert_eq!(prompts.lock().free_bytes, 8);
    }
}
