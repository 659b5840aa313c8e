//! The next token out of logits. Random numbers are a function of (seed, position), so an answer can be
//! reproduced from its seed and does not depend on what else runs.

use cocoon_protocol::engine::Sampling;

/// Checked parameters of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    seed: u64,
}

/// The logits hold no number to choose by: the model is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite")]
pub(crate) struct NotFinite;

impl Sampler {
    /// Refuses numbers that mean nothing, with the reason.
    pub(crate) fn new(sampling: &Sampling) -> Result<Self, &'static str> {
        let &Sampling {
            temperature,
            top_p,
            seed,
            ..
        } = sampling;
        if !(0.0..=100.0).contains(&temperature) {
            return Err("temperature has to be a number from 0 to 100");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err("top_p has to be above 0 and at most 1");
        }
        Ok(Self {
            temperature,
            top_p,
            seed,
        })
    }

    /// The token that follows `position` tokens. Of equals the first is taken.
    pub(crate) fn choose(&self, logits: &[f32], position: u64) -> Result<u32, NotFinite> {
        let (mut best, mut highest) = (0, f32::NEG_INFINITY);
        for (token, &logit) in logits.iter().enumerate() {
            if logit.is_nan() || logit == f32::INFINITY {
                return Err(NotFinite);
            }
            if logit > highest {
                (best, highest) = (token, logit);
            }
        }
        if highest == f32::NEG_INFINITY {
            return Err(NotFinite);
        }
        if self.temperature > 0.0 {
            best = self.draw(logits, highest, position);
        }
        Ok(best as u32)
    }

    /// Inverse of the cumulative distribution over the nucleus: the fewest tokens, likeliest first, that
    /// together have a probability of `top_p`.
    fn draw(&self, logits: &[f32], highest: f32, position: u64) -> usize {
        let weight = |logit: f32| (f64::from(logit - highest) / f64::from(self.temperature)).exp();
        let mut candidates: Vec<(usize, f64)> =
            logits.iter().map(|&logit| weight(logit)).enumerate().collect();
        let mut total: f64 = candidates.iter().map(|&(_, weight)| weight).sum();
        if self.top_p < 1.0 {
            // The sort is stable: equals stay in the order of the vocabulary.
            candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
            let (mut kept, mut nucleus) = (0, 0.0);
            while kept < candidates.len() && nucleus < total * f64::from(self.top_p) {
                nucleus += candidates[kept].1;
                kept += 1;
            }
            candidates.truncate(kept.max(1));
            total = nucleus;
        }
        let mut left = uniform(self.seed, position) * total;
        for &(token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        // Rounding can leave a crumb at the end.
        candidates
            .iter()
            .rev()
            .find(|(_, weight)| *weight > 0.0)
            .map_or(0, |&(token, _)| token)
    }
}

/// A number in [0, 1) from 53 bits.
fn uniform(seed: u64, position: u64) -> f64 {
    (mix(seed ^ mix(position)) >> 11) as f64 / (1u64 << 53) as f64
}

/// One step of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
        Sampler {
            temperature,
            top_p,
            seed,
        }
    }

    #[test]
    fn mixing_is_splitmix64() {
        // First output of the reference implementation for the seed 0.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        assert_eq!(
            sampler(0.0, 1.0, 0).choose(&[0.0, 2.0, 2.0, f32::NEG_INFINITY], 5),
            Ok(1)
        );
    }

    #[test]
    fn broken_logits_are_told() {
        for logits in [
            vec![],
            vec![0.0, f32::NAN],
            vec![f32::INFINITY, 0.0],
            vec![f32::NEG_INFINITY],
        ] {
            assert_eq!(
                sampler(0.0, 1.0, 0).choose(&logits, 0),
                Err(NotFinite),
                "{logits:?}"
            );
        }
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let logits = [0.0, f32::ln(3.0), f32::NEG_INFINITY];
        let draws = |seed| -> Vec<u32> {
            (0..4000)
                .map(|at| sampler(1.0, 1.0, seed).choose(&logits, at).unwrap())
                .collect()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        // 3/4 of 4000 are 3000, the standard deviation is 27; the numbers are the same in each run.
        let ones = draws(1).iter().filter(|&&token| token == 1).count();
        assert!((2850..3150).contains(&ones), "{ones}");
        assert!(!draws(1).contains(&2));
    }

    #[test]
    fn the_nucleus_leaves_out_the_tail() {
        let logits = [1.0, 3.0, 2.9, 0.0];
        for position in 0..500 {
            assert!([1, 2].contains(&sampler(1.0, 0.8, 3).choose(&logits, position).unwrap()));
            assert_eq!(sampler(1.0, 1e-6, 3).choose(&logits, position), Ok(1));
        }
    }

    #[test]
    fn senseless_parameters_are_refused() {
        let sampling = |temperature, top_p| Sampling {
            output_tokens_max: 1,
            temperature,
            top_p,
            seed: 0,
            stop: vec![],
        };
        for (temperature, top_p) in [
            (-1.0, 1.0),
            (f32::NAN, 1.0),
            (1.0, 0.0),
            (1.0, 1.5),
            (1.0, f32::NAN),
        ] {
            assert!(
                Sampler::new(&sampling(temperature, top_p)).is_err(),
                "{temperature} {top_p}"
            );
        }
        assert!(Sampler::new(&sampling(0.0, 1.0)).is_ok());
    }
}
