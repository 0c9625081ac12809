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
    /// Takes one of those that this address has; false: it has none.
    pub fn take(&self, address: IpAddr, now: Instant) -> bool {
        let mut state = lock(&self.0);
        if state.used.len() >= MAX_ADDRESSES {
            state.used.retain(|_, until| *until > now);
        }
        if state.used.len() >= MAX_ADDRESSES {
            // Too many to tell apart; who guesses with so many is slowed by the hashes alone.
            state.used.clear();
        }
        let until = state.used.entry(network(address)).or_insert(now);
        let used = (*until).max(now);
        let may = used <= now + ONE_MORE * (IN_A_ROW - 1);
        *until = if may { used + ONE_MORE } else { used };
        may
    }

    /// It was right: that one does not count.
    pub fn give_back(&self, address: IpAddr, now: Instant) {
        let mut state = lock(&self.0);
        if let Some(until) = state.used.get_mut(&network(address)) {
            *until = until.checked_sub(ONE_MORE).unwrap_or(now);
        }
    }

    /// It was wrong. Returns how often anybody was.
    pub fn failed(&self) -> u64 {
        let mut state = lock(&self.0);
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

    fn taken(attempts: &Attempts, address: IpAddr, now: Instant) -> u32 {
        let times = 0..2 * IN_A_ROW;
        times.map(|_| u32::from(attempts.take(address, now))).sum()
    }

    #[test]
    fn who_is_wrong_too_often_has_to_wait() {
        let attempts = Attempts::default();
        let now = Instant::now();
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        assert_eq!(taken(&attempts, one, now), IN_A_ROW);
        assert_eq!(taken(&attempts, one, now), 0);
        assert_eq!(taken(&attempts, other, now), IN_A_ROW);
        assert_eq!(taken(&attempts, one, now + ONE_MORE), 1);
        attempts.give_back(one, now + ONE_MORE);
        assert_eq!(taken(&attempts, one, now + ONE_MORE), 1);
        let much_later = now + ONE_MORE * 3 * IN_A_ROW;
        assert_eq!(taken(&attempts, one, much_later), IN_A_ROW);
        assert_eq!([attempts.failed(), attempts.failed()], [1, 2]);
    }

    #[test]
    fn who_is_right_never_waits() {
        let attempts = Attempts::default();
        let (one, now) = (IpAddr::from([192, 0, 2, 1]), Instant::now());
        for _ in 0..5 * IN_A_ROW {
            assert!(attempts.take(one, now));
            attempts.give_back(one, now);
        }
    }

    #[test]
    fn a_network_counts_as_one() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for last in 0..IN_A_ROW {
            let address = format!("2001:db8:0:1::{last}").parse().unwrap();
            assert!(attempts.take(address, now));
        }
        assert!(!attempts.take("2001:db8:0:1:ffff::1".parse().unwrap(), now));
        assert!(attempts.take("2001:db8:0:2::1".parse().unwrap(), now));
        for last in 0..IN_A_ROW {
            attempts.take(format!("::ffff:192.0.2.{last}").parse().unwrap(), now);
        }
        assert!(attempts.take([192, 0, 2, 1].into(), now));
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for number in 0..2 * MAX_ADDRESSES {
            let number = u32::try_from(number).unwrap();
            attempts.take(IpAddr::from(number.to_be_bytes()), now);
            assert!(lock(&attempts.0).used.len() <= MAX_ADDRESSES);
        }
    }
}
