//! Places for connections: how many there are, and who goes when all are taken and somebody new comes.
//!
//! Whoever can reach the port can connect, and peers cannot be told apart (all come from the host), so a place must
//! not be something that is kept by holding it. When none is free, the newcomer gets the place of whoever has not even
//! finished the TLS handshake and has been here longest. Where all have, it gets that of the longest without a grant,
//! whatever that one is doing: everything a stranger needs takes seconds. Then that of the client with a grant that
//! has been without a request for longest. A request that was admitted is never given up for a newcomer. Order is by
//! a counter: no clock decides.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// A bounded number of places.
pub(crate) struct Places {
    max: usize,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    holders: HashMap<u64, Holder>,
    /// Ids and times in one.
    counter: u64,
}

/// In the order in which holders go: those without a running answer, of these who has shown least, of these who has
/// been so for longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    /// Answers under way. Two at most: one that was asked for while the end of the one before was being recorded.
    answers: u32,
    shown: Shown,
    /// Since it showed that, or its last answer ended.
    since: u64,
}

/// What a holder has done for its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    Nothing,
    /// A TLS handshake.
    Handshake,
    /// A grant, which is bound.
    Grant,
}

struct Holder {
    standing: Standing,
    /// Dropped, it tells the holder to leave.
    _stay: oneshot::Sender<()>,
}

/// A place; given back when dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    id: u64,
}

/// An answer under way: keeps its place from being given to somebody else.
pub(crate) struct Serving(Arc<Place>);

impl Places {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            book: Mutex::default(),
        })
    }

    /// A place, and what ends when it has to be left. `None` if every place serves a request.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<(Arc<Place>, impl Future<Output = ()> + use<>)> {
        let mut book = self.lock();
        if book.holders.len() >= self.max {
            book.free_one()?;
        }
        let (stay, told) = oneshot::channel();
        let id = book.next();
        let standing = Standing {
            answers: 0,
            shown: Shown::Nothing,
            since: id,
        };
        let _stay = stay;
        book.holders.insert(id, Holder { standing, _stay });
        let places = Arc::clone(self);
        // Nothing is ever sent: it ends with its sender.
        let told = async { drop(told.await) };
        Some((Arc::new(Place { places, id }), told))
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Has the first in the order leave.
    fn free_one(&mut self) -> Option<()> {
        let (id, holder) = self.holders.iter().min_by_key(|(_, holder)| holder.standing)?;
        let id = (holder.standing.answers == 0).then_some(*id)?;
        self.holders.remove(&id);
        Some(())
    }

    /// `None` if the place was given away meanwhile.
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Standing)) -> Option<()> {
        let now = self.next();
        let standing = &mut self.holders.get_mut(&id)?.standing;
        change(standing);
        standing.since = now;
        Some(())
    }
}

impl Place {
    /// The TLS handshake is over.
    pub(crate) fn spoke(&self) {
        self.shows(Shown::Handshake);
    }

    /// A grant was bound.
    pub(crate) fn paid(&self) {
        self.shows(Shown::Grant);
    }

    /// The same again counts for nothing: a place is not kept by repeating what costs nothing.
    fn shows(&self, shown: Shown) {
        let mut book = self.places.lock();
        let before = book.holders.get(&self.id).map(|holder| holder.standing.shown);
        if before.is_some_and(|before| before < shown) {
            book.change(self.id, |standing| standing.shown = shown);
        }
    }

    /// Keeps the place while an answer is under way. `None` if it was given away already.
    pub(crate) fn serve(self: &Arc<Self>) -> Option<Serving> {
        self.places
            .lock()
            .change(self.id, |standing| standing.answers += 1)?;
        Some(Serving(Arc::clone(self)))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Place { places, id } = &*self.0;
        places.lock().change(*id, |standing| standing.answers -= 1);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().holders.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Waker},
    };

    use super::*;

    /// A place and, until it was told to leave, what tells it.
    type Holder = (Arc<Place>, Option<Pin<Box<dyn Future<Output = ()>>>>);

    fn enter(places: &Arc<Places>) -> Holder {
        let (place, told) = places.enter().expect("somebody goes");
        (place, Some(Box::pin(told)))
    }

    /// Who was told to leave.
    fn gone(holders: &mut [Holder]) -> Vec<bool> {
        let mut context = Context::from_waker(Waker::noop());
        for (_, told) in &mut *holders {
            told.take_if(|told| told.as_mut().poll(&mut context).is_ready());
        }
        holders.iter().map(|(_, told)| told.is_none()).collect()
    }

    #[test]
    fn idle_connections_do_not_hold_all_places() {
        let places = Places::new(3);
        let mut idle = [enter(&places), enter(&places), enter(&places)];
        let newcomer = enter(&places);
        assert_eq!(gone(&mut idle), [true, false, false], "the longest here goes");
        let next = enter(&places);
        assert_eq!(gone(&mut idle), [true, true, false]);
        // Those who were told and have not gone yet take no place from others.
        drop(idle);
        drop((newcomer, next));
        assert!(places.lock().holders.is_empty());
    }

    #[test]
    fn strangers_go_before_those_who_pay_and_nobody_goes_in_the_middle_of_an_answer() {
        let places = Places::new(3);
        let mut holders = [enter(&places), enter(&places), enter(&places)];
        holders[0].0.paid();
        holders[1].0.paid();
        let answer = holders[1].0.serve().unwrap();
        let newcomer = enter(&places);
        assert_eq!(gone(&mut holders), [false, false, true], "the stranger");
        newcomer.0.paid();
        let second = newcomer.0.serve().unwrap();
        let third = enter(&places);
        assert_eq!(
            gone(&mut holders),
            [true, false, true],
            "the idle one with a grant"
        );
        third.0.paid();
        let last = third.0.serve().unwrap();
        assert!(places.enter().is_none(), "all serve");
        drop((answer, second, last));
        let fourth = enter(&places);
        assert_eq!(gone(&mut holders), [true, true, true], "its answer ended first");
        drop(fourth);
    }

    #[test]
    fn who_finished_the_handshake_goes_after_those_who_only_connect() {
        let places = Places::new(2);
        let mut holders = [enter(&places), enter(&places)];
        holders[0].0.spoke();
        let _newcomer = enter(&places);
        assert_eq!(gone(&mut holders), [false, true]);
    }

    #[test]
    fn binding_the_same_grant_again_and_again_keeps_no_place() {
        let places = Places::new(2);
        let mut holders = [enter(&places), enter(&places)];
        for (place, _) in &holders {
            place.spoke();
            place.paid();
        }
        holders[0].0.paid();
        let _newcomer = enter(&places);
        assert_eq!(gone(&mut holders), [true, false]);
    }

    /// A client sends its next request as soon as it has an answer's last byte, before that answer's task has ended.
    #[test]
    fn an_answer_is_kept_when_the_one_before_it_ends_late() {
        let places = Places::new(1);
        let (place, _told) = enter(&places);
        let (before, next) = (place.serve(), place.serve());
        drop(before);
        assert!(places.enter().is_none());
        drop(next);
        assert!(places.enter().is_some());
    }

    #[test]
    fn whose_place_was_given_away_starts_no_request() {
        let places = Places::new(1);
        let (first, _told) = enter(&places);
        let (second, _) = enter(&places);
        assert!(first.serve().is_none());
        first.paid();
        drop(first);
        assert_eq!(places.lock().holders.len(), 1, "the newcomer's");
        assert!(second.serve().is_some());
    }
}
