//! Names and hashed passwords, as `htpasswd` writes them.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha_crypt::{PasswordVerifier, ShaCrypt};

use crate::base::threads::lock;

/// How many passwords wait to be checked, or are, at a time.
const MAX_WAITING: usize = 8;
/// How many verified pairs are remembered.
const MAX_KNOWN: usize = 1024;

/// One line of such a file.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    hash: String,
}

impl User {
    /// Reads `name:hash`.
    ///
    /// Errors: what is wrong with it, without repeating it.
    pub fn read(line: &str) -> Result<User, &'static str> {
        let (name, hash) = line
            .split_once(':')
            .ok_or("allowed is a name, a colon and a hash")?;
        let is_name =
            (1..=64).contains(&name.len()) && name.bytes().all(|it| it.is_ascii_graphic());
        if !is_name {
            return Err("a name is 1 to 64 printable ASCII characters without blanks");
        }
        let user = User {
            name: name.to_owned(),
            hash: hash.to_owned(),
        };
        match user.is_hashed() {
            true => Ok(user),
            false => Err(
                "a hash is one of bcrypt, SHA-256 or SHA-512, as `htpasswd -B`, `-2` and `-5` write it; all else is too easy to guess",
            ),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    // Whether the hash is one that can be checked.
    fn is_hashed(&self) -> bool {
        match self.hash.starts_with("$2") {
            true => self.hash.parse::<bcrypt::HashParts>().is_ok(),
            false => self.checks("").is_some(),
        }
    }

    // Whether this is the password; none: the hash is of no known kind.
    fn checks(&self, password: &str) -> Option<bool> {
        let hash = self.hash.as_str();
        match hash.get(..3)? {
            "$2y" | "$2b" | "$2a" => bcrypt::verify(password, hash).ok(),
            "$5$" | "$6$" => {
                let verified = ShaCrypt::default().verify_password(password.as_bytes(), hash);
                match verified {
                    Ok(()) => Some(true),
                    Err(sha_crypt::password_hash::Error::PasswordInvalid) => Some(false),
                    Err(_) => None,
                }
            }
            _ => None,
        }
    }
}

/// Those who may call, with their passwords.
pub struct Users {
    path: PathBuf,
    users: Vec<User>,
    // What was verified, so that not each request takes the time that a hash is made to take. Digests
    // with keys of this process: nothing that could be guessed at leisure.
    known: Mutex<HashSet<[u64; 2]>>,
    seeds: [RandomState; 2],
    // One at a time: whoever guesses gets one processor at the most, and few connections.
    turn: Mutex<()>,
    waiting: AtomicUsize,
}

/// There are as many who wait for their passwords to be checked as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBusy;

impl Users {
    /// Those of a file.
    pub fn new(path: PathBuf, users: Vec<User>) -> Users {
        Users {
            path,
            users,
            known: Mutex::default(),
            seeds: Default::default(),
            turn: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Where they stand.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(User::name)
    }

    fn digest(&self, name: &str, password: &str) -> [u64; 2] {
        [0, 1].map(|number| self.seeds[number].hash_one((name, password)))
    }

    /// The user with this name and password, if both were verified before. Fast.
    pub fn known(&self, name: &str, password: &str) -> Option<&str> {
        let digest = self.digest(name, password);
        lock(&self.known).contains(&digest).then_some(())?;
        self.names().find(|it| *it == name)
    }

    /// Whether somebody has this name.
    pub fn has(&self, name: &str) -> bool {
        self.names().any(|it| it == name)
    }

    /// The user with this name and password. Takes the time that the hash is made to take, whether there
    /// is such a name or not.
    ///
    /// Errors: too many wait for that.
    pub fn verify(&self, name: &str, password: &str) -> Result<Option<&str>, TooBusy> {
        let before = self.waiting.fetch_add(1, Ordering::SeqCst);
        let verified = (before < MAX_WAITING).then(|| self.check(name, password));
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        verified.ok_or(TooBusy)
    }

    fn check(&self, name: &str, password: &str) -> Option<&str> {
        let _turn = lock(&self.turn);
        let user = self.users.iter().find(|user| user.name == name);
        let checked = user.or(self.users.first())?.checks(password)?;
        let user = user.filter(|_| checked)?;
        let mut known = lock(&self.known);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(self.digest(name, password));
        Some(user.name())
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // `htpasswd -nbB -C 4 anna secret`, and the same with `-2` and `-5`.
    const BCRYPT: &str = "$2y$04$6td68BC1b0cuF7kEW5R8Q.Eg/0QXQ6oEokGO1rF832yfCiTDukTaC";
    const SHA_256: &str = "$5$IlJ1ZF5TKO2BdM5z$UT6tLxu6KqSPIpk1C3aKyeGpSHl1Rl7AupJ80KiFZT4";
    const SHA_512: &str = "$6$vwSmt6Nz9.01zNiD$H9.ub1UdwWIWLrtJRwPmpHoL5hrFVfFVf/B4ylH98YOZqTVkMdZtAySUYpKAnLXLzmS345DadpcZsb84LlQr90";

    #[test]
    fn each_kind_of_hash_is_checked() {
        for hash in [BCRYPT, SHA_256, SHA_512] {
            let user = User::read(&format!("anna:{hash}")).unwrap();
            let users = Users::new("x".into(), vec![user]);
            assert_eq!(users.known("anna", "secret"), None);
            assert_eq!(users.verify("anna", "Secret"), Ok(None));
            assert_eq!(users.verify("anne", "secret"), Ok(None));
            assert_eq!(users.verify("anna", "secret"), Ok(Some("anna")), "{hash}");
            assert_eq!(users.known("anna", "secret"), Some("anna"));
            assert_eq!(users.known("anna", "Secret"), None);
        }
    }

    #[test]
    fn only_a_few_wait_for_the_hashes() {
        let users = Users::new(
            "x".into(),
            vec![User::read(&format!("anna:{BCRYPT}")).unwrap()],
        );
        let turn = lock(&users.turn);
        std::thread::scope(|scope| {
            let verify = || users.verify("anna", "secret");
            let waiting: Vec<_> = (0..MAX_WAITING).map(|_| scope.spawn(verify)).collect();
            while users.waiting.load(Ordering::SeqCst) < MAX_WAITING {
                std::thread::yield_now();
            }
            assert_eq!(verify(), Err(TooBusy));
            drop(turn);
            for thread in waiting {
                assert_eq!(thread.join().unwrap(), Ok(Some("anna")));
            }
            assert_eq!(verify(), Ok(Some("anna")));
        });
    }

    #[test]
    fn what_is_no_user_is_refused() {
        for line in [
            "anna",
            "anna:",
            "anna:secret",
            "anna:$apr1$x$y",
            "anna:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
            "anna:$2y$04$short",
            "anna:$6$rounds=1$x",
        ] {
            assert!(User::read(line).is_err(), "{line}");
        }
        assert!(User::read(&format!(":{BCRYPT}")).is_err());
        assert!(User::read(&format!("an na:{BCRYPT}")).is_err());
    }
}
