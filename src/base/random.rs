//! Random numbers from the system, fetched in portions: each time is a system call.

use std::cell::RefCell;

use getrandom::Error;

/// How many bytes are fetched at a time.
const PORTION: usize = 240;

struct Portion {
    bytes: [u8; PORTION],
    // Those before were given away.
    next: usize,
}

thread_local! {
    // Each thread has its own, so that none waits for another.
    static PORTION_OF_THREAD: RefCell<Portion> = const {
        RefCell::new(Portion {
            bytes: [0; PORTION],
            next: PORTION,
        })
    };
}

/// Bytes that nobody can guess, and that nobody else gets.
///
/// Errors: the system gives none.
pub fn bytes<const COUNT: usize>() -> Result<[u8; COUNT], Error> {
    const { assert!(COUNT <= PORTION) };
    PORTION_OF_THREAD.with_borrow_mut(|portion| {
        if PORTION - portion.next < COUNT {
            getrandom::fill(&mut portion.bytes)?;
            portion.next = 0;
        }
        let mut given = [0; COUNT];
        let own = &mut portion.bytes[portion.next..portion.next + COUNT];
        given.swap_with_slice(own);
        portion.next += COUNT;
        Ok(given)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nothing_is_given_twice() {
        let some = || (0..1000).map(|_| bytes::<16>().unwrap());
        let others = std::thread::spawn(move || some().collect::<Vec<_>>());
        let mut all: HashSet<[u8; 16]> = some().collect();
        all.extend(others.join().unwrap());
        assert_eq!(all.len(), 2000);
        assert!(!all.contains(&[0; 16]));
    }
}
