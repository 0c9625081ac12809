//! Looks a name up once in a while instead of once per request: ureq's own resolver starts a thread
//! for each request that has a time-out.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Uri;
use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::base::connect::connect;
use crate::base::threads::{self, lock};

/// After how long a name is looked up again, in the background.
const FRESH: Duration = Duration::from_secs(30);
/// How long its addresses are used at the most; then a request waits for the new ones.
const USABLE: Duration = Duration::from_secs(60);
/// How many names are remembered; an agent has one upstream, or a few.
const MAX_NAMES: usize = 64;

/// A resolver that remembers what `R` has found. Clones share what they know.
pub(super) struct Caching<R> {
    names: Arc<Names<R>>,
}

struct Names<R> {
    resolver: R,
    // By authority.
    known: Mutex<HashMap<String, Known>>,
}

struct Known {
    addresses: Vec<SocketAddr>,
    since: Instant,
    // Somebody is looking it up, or has tried to in vain.
    is_refreshing: bool,
}

impl Known {
    fn put_first(&mut self, address: SocketAddr) {
        if let Some(at) = self.addresses.iter().position(|known| *known == address) {
            self.addresses[..=at].rotate_right(1);
        }
    }
}

impl<R: Resolver> Caching<R> {
    pub fn new(resolver: R) -> Caching<R> {
        let known = Mutex::default();
        Caching {
            names: Arc::new(Names { resolver, known }),
        }
    }

    fn resolve_at(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
        now: Instant,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        if let Some((found, is_old)) = self.names.known(uri, now) {
            if is_old {
                self.refresh(uri, config);
            }
            return Ok(found);
        }
        let found = self.names.resolver.resolve(uri, config, timeout)?;
        self.names.remember(uri, &found, now);
        Ok(found)
    }

    /// Connects to the first of a name's addresses that answers; the next connection begins with it.
    ///
    /// Errors: see [`connect`].
    pub fn connect(
        &self,
        uri: &Uri,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> io::Result<TcpStream> {
        let stream = connect(addresses, deadline)?;
        if addresses.len() > 1
            && let Ok(address) = stream.peer_addr()
            && let Some(known) = lock(&self.names.known).get_mut(authority(uri))
        {
            known.put_first(address);
        }
        Ok(stream)
    }

    // Nobody waits for this. If it fails, a request looks the name up once its addresses are too old.
    fn refresh(&self, uri: &Uri, config: &Config) {
        let own = Arc::clone(&self.names);
        let (uri, config) = (uri.clone(), config.clone());
        let refreshing = threads::spawn("resolver", 256, move || {
            let no_limit = NextTimeout::default();
            match own.resolver.resolve(&uri, &config, no_limit) {
                Ok(found) => own.remember(&uri, &found, Instant::now()),
                Err(error) => log::debug!("{}: {error}", authority(&uri)),
            }
        });
        if let Err(error) = refreshing {
            log::debug!("resolver: {}", error.chain());
        }
    }
}

impl<R: Resolver> Names<R> {
    // The addresses, and whether the caller is to look them up again.
    fn known(&self, uri: &Uri, now: Instant) -> Option<(ResolvedSocketAddrs, bool)> {
        let mut names = lock(&self.known);
        let known = names.get_mut(authority(uri))?;
        let age = now.saturating_duration_since(known.since);
        if age >= USABLE {
            return None;
        }
        let is_old = age >= FRESH && !known.is_refreshing;
        known.is_refreshing |= is_old;
        let mut found = self.resolver.empty();
        let addresses = known.addresses.iter();
        addresses.for_each(|address| found.push(*address));
        Some((found, is_old))
    }

    fn remember(&self, uri: &Uri, found: &ResolvedSocketAddrs, now: Instant) {
        let mut names = lock(&self.known);
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        let mut known = Known {
            addresses: found.to_vec(),
            since: now,
            is_refreshing: false,
        };
        // The one that answered before goes on being the first.
        let before = names.get(authority(uri));
        if let Some(first) = before.and_then(|before| before.addresses.first()) {
            known.put_first(*first);
        }
        names.insert(authority(uri).to_owned(), known);
    }
}

fn authority(uri: &Uri) -> &str {
    uri.authority().map_or("", |authority| authority.as_str())
}

impl<R: Resolver> Resolver for Caching<R> {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.resolve_at(uri, config, timeout, Instant::now())
    }
}

impl<R> Clone for Caching<R> {
    fn clone(&self) -> Caching<R> {
        Caching {
            names: Arc::clone(&self.names),
        }
    }
}

impl<R> fmt::Debug for Caching<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caching").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;

    // Each lookup finds another port, until the third finds nothing.
    #[derive(Debug, Default)]
    struct Moving(AtomicU16);

    impl Resolver for Moving {
        fn resolve(
            &self,
            _: &Uri,
            _: &Config,
            _: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let number = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            if number > 2 {
                return Err(ureq::Error::HostNotFound);
            }
            let mut found = self.empty();
            found.push(SocketAddr::from(([127, 0, 0, 1], number)));
            Ok(found)
        }
    }

    fn port_after(resolver: &Caching<Moving>, seconds: u64) -> Option<u16> {
        let begun = lock(&resolver.names.known)
            .values()
            .map(|known| known.since)
            .next();
        let now = begun.unwrap_or_else(Instant::now) + Duration::from_secs(seconds);
        let timeout = NextTimeout::default();
        let uri = Uri::from_static("http://upstream.example/x");
        let found = resolver.resolve_at(&uri, &Config::default(), timeout, now);
        found.ok().map(|found| found[0].port())
    }

    #[test]
    fn an_old_name_is_looked_up_again_while_nobody_waits() {
        let resolver = Caching::new(Moving::default());
        assert_eq!(port_after(&resolver, 0), Some(1));
        assert_eq!(port_after(&resolver, 29), Some(1));
        let looked_up = |times| resolver.names.resolver.0.load(Ordering::SeqCst) == times;
        assert!(looked_up(1));
        assert_eq!(port_after(&resolver, 31), Some(1), "the old one for now");
        let limit = Instant::now() + Duration::from_secs(30);
        while port_after(&resolver, 0) != Some(2) {
            assert!(Instant::now() < limit, "the new address is never used");
            std::thread::yield_now();
        }
        assert!(looked_up(2), "by one caller only");
        assert_eq!(port_after(&resolver, 31), Some(2));
        assert_eq!(
            port_after(&resolver, 59),
            Some(2),
            "while nothing else is known"
        );
        assert_eq!(port_after(&resolver, 60), None, "too old");
    }
}
