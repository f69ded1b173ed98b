//! Token buckets (RFC 2697 with one rate): how much a port may carry one way. Pure; the caller brings the time.
//!
//! A frame passes as long as there is anything in the bucket and may leave it in debt, so that a bucket smaller than a
//! frame still gives the right rate over time.

use hpvm_model::Rate;

const NANOSECONDS: u128 = 1_000_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    rate: Rate,
    /// In bits times 10^9, so that no part of a nanosecond's worth is lost.
    level: i128,
    filled_ns: u64,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(rate: Rate, now_ns: u64) -> Bucket {
        Bucket { rate, level: Self::brim(&rate), filled_ns: now_ns }
    }

    /// What a port has after its rules were given anew: a rate that stays keeps what is in its bucket.
    pub(crate) fn kept(before: Option<Bucket>, rate: Option<Rate>, now_ns: u64) -> Option<Bucket> {
        let rate = rate?;
        let before = before.filter(|bucket| bucket.rate == rate);
        Some(before.unwrap_or_else(|| Bucket::new(rate, now_ns)))
    }

    fn brim(rate: &Rate) -> i128 {
        (u128::from(rate.burst_bytes.max(1)) * 8 * NANOSECONDS).cast_signed()
    }

    /// Pours in what came since.
    pub(crate) fn fill(&mut self, now_ns: u64) {
        let elapsed = u128::from(now_ns.saturating_sub(self.filled_ns));
        let poured = (elapsed * u128::from(self.rate.bits_per_second)).cast_signed();
        self.level = (self.level + poured).min(Self::brim(&self.rate));
        self.filled_ns = self.filled_ns.max(now_ns);
    }

    pub(crate) fn open(&self) -> bool {
        self.level > 0
    }

    pub(crate) fn take(&mut self, bytes: u32) {
        self.level -= (u128::from(bytes) * 8 * NANOSECONDS).cast_signed();
    }

    /// How many frames of the longest kind may be taken before the next look.
    pub(crate) fn frames(&self, max: usize) -> usize {
        let bytes = self.level.max(0).cast_unsigned() / (8 * NANOSECONDS);
        usize::try_from(bytes / 65_536).unwrap_or(max).clamp(1, max)
    }

    /// When the bucket is open again, if ever.
    pub(crate) fn open_at_ns(&self) -> Option<u64> {
        let missing = (1 - self.level.min(0)).cast_unsigned();
        let wait = missing.checked_div(u128::from(self.rate.bits_per_second))? + 1;
        Some(self.filled_ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever changes another rule of a port again and again gives its guest no more than its rate.
    #[test]
    fn a_rate_that_stays_keeps_its_debt() {
        let (slow, fast) = (
            Rate { bits_per_second: 8, burst_bytes: 1 },
            Rate { bits_per_second: 80, burst_bytes: 1 },
        );
        let mut bucket = Bucket::new(slow, 0);
        bucket.take(1000);
        assert_eq!(Bucket::kept(Some(bucket.clone()), Some(slow), 5), Some(bucket.clone()));
        assert_eq!(Bucket::kept(Some(bucket.clone()), Some(fast), 5), Some(Bucket::new(fast, 5)));
        assert_eq!(Bucket::kept(Some(bucket), None, 5), None);
        assert_eq!(Bucket::kept(None, Some(slow), 5), Some(Bucket::new(slow, 5)));
    }
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn over_time_the_rate_is_kept(
            bits_per_second in 1_000u64..100_000_000_000,
            burst_bytes in 0u64..1_000_000,
            frames in prop::collection::vec((60u32..65_000, 0u64..10_000_000), 1..500),
        ) {
            let mut bucket = Bucket::new(Rate { bits_per_second, burst_bytes }, 0);
            let (mut now, mut passed, mut last) = (0u64, 0u128, 0);
            for (bytes, wait) in frames {
                now += wait;
                bucket.fill(now);
                if bucket.open() {
                    bucket.take(bytes);
                    passed += u128::from(bytes);
                    last = bytes;
                } else {
                    let open_at = bucket.open_at_ns().expect("a rate");
                    let mut later = bucket.clone();
                    later.fill(open_at);
                    prop_assert!(later.open());
                    let mut sooner = bucket.clone();
                    sooner.fill(open_at.saturating_sub(2));
                    prop_assert!(open_at < now + 2 || !sooner.open());
                }
            }
            let allowed = u128::from(now) * u128::from(bits_per_second) / 8 / NANOSECONDS
                + u128::from(burst_bytes.max(1)) + u128::from(last);
            prop_assert!(passed <= allowed + 1, "{} of {}", passed, allowed);
        }
    }
}
