//! Which node gets a request: of two random ones that may, the one with less outstanding work. That keeps queues
//! nearly as even as asking all would, and a node that just became free is not stormed. Pure.

/// Index into `outstanding`, the requests that run on each candidate; `None` if there is none. `random` is
/// uniform.
pub(crate) fn choose(outstanding: &[usize], random: [u32; 2]) -> Option<usize> {
    let count = u32::try_from(outstanding.len()).ok().filter(|count| *count > 0)?;
    let first = (random[0] % count) as usize;
    if count == 1 {
        return Some(first);
    }
    // Another one than the first.
    let second = (first + 1 + (random[1] % (count - 1)) as usize) % outstanding.len();
    Some(if outstanding[second] < outstanding[first] {
        second
    } else {
        first
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_with_less_work_is_picked() {
        assert_eq!(choose(&[], [1, 2]), None);
        assert_eq!(choose(&[9], [1, 2]), Some(0));
        for first in 0..8 {
            for second in 0..8 {
                assert_eq!(choose(&[5, 1], [first, second]), Some(1));
                // Two different ones are compared, so the busiest of three is never picked.
                assert_ne!(choose(&[1, 7, 2], [first, second]), Some(1));
            }
        }
    }

    #[test]
    fn equals_share_the_work() {
        let picked: Vec<_> = (0..100)
            .filter_map(|turn| choose(&[0, 0, 0, 0], [turn, turn / 4]))
            .collect();
        for node in 0..4 {
            assert_eq!(picked.iter().filter(|index| **index == node).count(), 25);
        }
    }
}
