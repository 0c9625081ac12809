//! How often somebody may be wrong about who he is. Pure, but for the lock.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::base::threads::lock;

/// How often in a row, and after how long once more.
const IN_A_ROW: u32 = 10;
const ONE_MORE: Duration = Duration::from_secs(1);
/// How many addresses are remembered.
const MAX_ADDRESSES: usize = 4096;

/// Who was wrong lately.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    // Until when each has used up what it may be wrong.
    used: HashMap<IpAddr, Instant>,
    total: u64,
}

impl Attempts {
    /// Whether this address may try.
    pub fn may(&self, address: IpAddr, now: Instant) -> bool {
        let state = lock(&self.0);
        let used = state.used.get(&network(address)).copied();
        used.is_none_or(|until| until <= now + ONE_MORE * (IN_A_ROW - 1))
    }

    /// It was wrong. Returns how often anybody was.
    pub fn failed(&self, address: IpAddr, now: Instant) -> u64 {
        let mut state = lock(&self.0);
        if state.used.len() >= MAX_ADDRESSES {
            state.used.retain(|_, until| *until > now);
        }
        if state.used.len() >= MAX_ADDRESSES {
            // Too many to tell apart; who guesses with so many is slowed by the hashes alone.
            state.used.clear();
        }
        let until = state.used.entry(network(address)).or_insert(now);
        *until = (*until).max(now) + ONE_MORE;
        state.total += 1;
        state.total
    }
}

// Whoever has an address in IPv6 has all that begin as it does.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let all = u128::from(address) & (u128::MAX << 64);
            Ipv6Addr::from(all).into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_wrong_too_often_has_to_wait() {
        let attempts = Attempts::default();
        let now = Instant::now();
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        for number in 1..=u64::from(IN_A_ROW) {
            assert!(attempts.may(one, now));
            assert_eq!(attempts.failed(one, now), number);
        }
        assert!(!attempts.may(one, now));
        assert!(attempts.may(other, now));
        let later = now + ONE_MORE;
        assert!(attempts.may(one, later));
        attempts.failed(one, later);
        assert!(!attempts.may(one, later));
        let much_later = now + ONE_MORE * 2 * IN_A_ROW;
        for _ in 0..IN_A_ROW {
            assert!(attempts.may(one, much_later));
            attempts.failed(one, much_later);
        }
        assert!(!attempts.may(one, much_later));
    }

    #[test]
    fn a_network_counts_as_one() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for last in 0..IN_A_ROW {
            let address = format!("2001:db8:0:1::{last}").parse().unwrap();
            attempts.failed(address, now);
        }
        assert!(!attempts.may("2001:db8:0:1:ffff::1".parse().unwrap(), now));
        assert!(attempts.may("2001:db8:0:2::1".parse().unwrap(), now));
        for last in 0..IN_A_ROW {
            attempts.failed(format!("::ffff:192.0.2.{last}").parse().unwrap(), now);
        }
        assert!(attempts.may([192, 0, 2, 1].into(), now));
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for number in 0..2 * MAX_ADDRESSES {
            let number = u32::try_from(number).unwrap();
            attempts.failed(IpAddr::from(number.to_be_bytes()), now);
            assert!(lock(&attempts.0).used.len() <= MAX_ADDRESSES);
        }
    }
}
