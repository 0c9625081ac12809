//! The brokers that a program knows, and how it uses them.

use std::fmt;

use serde::Deserialize;

use super::url::BrokerUrl;

/// What several brokers are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BrokerMode {
    /// One at a time, in order: the next one when one is lost. They must know each other's messages, as the
    /// nodes of a cluster do.
    #[default]
    Failover,
    /// All at once. They need not know of each other.
    All,
}

impl fmt::Display for BrokerMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BrokerMode::Failover => "failover",
            BrokerMode::All => "all",
        })
    }
}

/// One broker or several, each of them once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brokers {
    urls: Vec<BrokerUrl>,
    mode: BrokerMode,
}

impl Brokers {
    /// How many there may be.
    pub const MOST: usize = 16;

    /// Takes them in their order.
    ///
    /// Errors: there is none, or more than [`Brokers::MOST`], or one twice.
    pub fn new(urls: Vec<BrokerUrl>, mode: BrokerMode) -> Result<Brokers, String> {
        if urls.is_empty() || urls.len() > Brokers::MOST {
            let (count, most) = (urls.len(), Brokers::MOST);
            return Err(format!("found {count} brokers, allowed are 1 to {most}"));
        }
        for (number, url) in urls.iter().enumerate() {
            if urls[..number].iter().any(|other| other.is_same_place(url)) {
                return Err(format!("{url} is there twice"));
            }
        }
        Ok(Brokers { urls, mode })
    }

    /// How they are used.
    pub fn mode(&self) -> BrokerMode {
        self.mode
    }

    /// Each of them.
    pub fn urls(&self) -> &[BrokerUrl] {
        &self.urls
    }

    /// The lists that connections are made to, each to one of a list at a time.
    pub fn connections(&self) -> Vec<Vec<BrokerUrl>> {
        match self.mode {
            BrokerMode::Failover => vec![self.urls.clone()],
            BrokerMode::All => self.urls.iter().map(|url| vec![url.clone()]).collect(),
        }
    }

    /// Whether there are several, all of them used at once.
    pub fn are_used_at_once(&self) -> bool {
        self.mode == BrokerMode::All && self.urls.len() > 1
    }

    /// Whether others lead to the same brokers in the same way, whoever connects and whomever it trusts.
    pub fn are_same_places(&self, other: &Brokers) -> bool {
        let mut pairs = self.urls.iter().zip(&other.urls);
        self.mode == other.mode
            && self.urls.len() == other.urls.len()
            && pairs.all(|(own, other)| own.is_same_place(other))
    }
}

impl From<BrokerUrl> for Brokers {
    fn from(url: BrokerUrl) -> Brokers {
        Brokers {
            urls: vec![url],
            mode: BrokerMode::default(),
        }
    }
}

impl fmt::Display for Brokers {
    /// The URLs without their passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.urls))
    }
}

/// The brokers of one connection, and whose turn it is.
pub(super) struct Turns {
    urls: Vec<BrokerUrl>,
    turn: usize,
}

impl Turns {
    /// `urls`: one at least.
    pub fn new(urls: Vec<BrokerUrl>) -> Turns {
        Turns { urls, turn: 0 }
    }

    pub fn count(&self) -> usize {
        self.urls.len()
    }

    pub fn first(&self) -> &BrokerUrl {
        &self.urls[0]
    }

    pub fn current(&self) -> &BrokerUrl {
        &self.urls[self.turn]
    }

    /// Which of them that is.
    pub fn turn(&self) -> usize {
        self.turn
    }

    pub fn take_next(&mut self) {
        self.turn = (self.turn + 1) % self.urls.len();
    }

    pub fn take_first(&mut self) {
        self.turn = 0;
    }

    /// The same brokers, with other credentials or certificates.
    pub fn replace(&mut self, urls: Vec<BrokerUrl>) {
        if urls.len() == self.urls.len() {
            self.urls = urls;
        }
    }
}

/// Several URLs in one line, without their passwords.
pub(crate) fn list(urls: &[BrokerUrl]) -> String {
    let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
    urls.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(list: &[&str]) -> Vec<BrokerUrl> {
        list.iter().map(|url| url.parse().unwrap()).collect()
    }

    #[test]
    fn each_broker_is_there_once() {
        let new = |list: &[&str]| Brokers::new(urls(list), BrokerMode::All);
        assert!(new(&[]).is_err());
        assert!(new(&["mqtt://a"; 17]).is_err());
        let twice = new(&["mqtt://a", "mqtt://me:hush@a:1883"]).unwrap_err();
        assert_eq!(twice, "mqtt://me:***@a:1883 is there twice");
        let two = new(&["mqtt://a", "mqtt://me:hush@b"]).unwrap();
        assert_eq!(two.to_string(), "mqtt://a:1883, mqtt://me:***@b:1883");
        assert_eq!(
            two.connections(),
            [urls(&["mqtt://a"]), two.urls()[1..].to_vec()]
        );
        let failover = Brokers::new(two.urls().to_vec(), BrokerMode::Failover).unwrap();
        assert_eq!(failover.connections(), [two.urls()]);
        assert!(!failover.are_same_places(&two));
        let plain = new(&["mqtt://a", "mqtt://b"]).unwrap();
        assert!(plain.are_same_places(&two), "whoever connects");
    }
}
