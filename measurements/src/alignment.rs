//! Which events two lists have in common, and which take each other's place.

/// One difference: an event in one list, in the other, or one in the place of another.
pub(crate) struct Difference<'a, A, B> {
    /// Position in the first list.
    pub(crate) position: usize,
    pub(crate) a: Option<&'a A>,
    pub(crate) b: Option<&'a B>,
}

/// Lists longer than this are compared position by position: aligning takes the product of the lengths.
pub(crate) const ALIGNED_MAX: usize = 2048;

/// What is left after the longest common subsequence is taken out.
pub(crate) fn align<'a, A, B>(
    a: &'a [A],
    b: &'a [B],
    same: impl Fn(&A, &B) -> bool,
) -> Vec<Difference<'a, A, B>> {
    if a.len().max(b.len()) > ALIGNED_MAX {
        return by_position(a, b, same);
    }
    let common = common_lengths(a, b, &same);
    let (mut i, mut j) = (0, 0);
    let mut differing = Vec::new();
    while i < a.len() || j < b.len() {
        let (mut here_a, mut here_b) = (a.get(i), b.get(j));
        if let (Some(x), Some(y)) = (here_a, here_b) {
            let replaced = common[i + 1][j + 1] == common[i][j];
            if same(x, y) {
                (i, j) = (i + 1, j + 1);
                continue;
            }
            // Unless neither is in what follows in common, only one of them is too many.
            if !replaced && common[i + 1][j] >= common[i][j + 1] {
                here_b = None;
            } else if !replaced {
                here_a = None;
            }
        }
        differing.push(Difference {
            position: i,
            a: here_a,
            b: here_b,
        });
        i += usize::from(here_a.is_some());
        j += usize::from(here_b.is_some());
    }
    differing
}

fn by_position<'a, A, B>(a: &'a [A], b: &'a [B], same: impl Fn(&A, &B) -> bool) -> Vec<Difference<'a, A, B>> {
    (0..a.len().max(b.len()))
        .map(|position| Difference {
            position,
            a: a.get(position),
            b: b.get(position),
        })
        .filter(|difference| !matches!((difference.a, difference.b), (Some(a), Some(b)) if same(a, b)))
        .collect()
}

/// `[i][j]`: how long the longest common subsequence of `a[i..]` and `b[j..]` is.
fn common_lengths<A, B>(a: &[A], b: &[B], same: impl Fn(&A, &B) -> bool) -> Vec<Vec<u16>> {
    let mut lengths = vec![vec![0u16; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            lengths[i][j] = if same(&a[i], &b[j]) {
                lengths[i + 1][j + 1] + 1
            } else {
                lengths[i + 1][j].max(lengths[i][j + 1])
            };
        }
    }
    lengths
}
