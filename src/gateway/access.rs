//! Whether a request may pass: bearer tokens (RFC 6750), and names with passwords (RFC 7617).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use super::attempts::Attempts;
use super::settings::{Access, Admission, Route};
use super::users::{TooBusy, Users};
use crate::http::Failure;
use crate::http::failure::Wanted;

/// The longest password, in bytes.
const MAX_PASSWORD: usize = 256;

/// Who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller<'a> {
    /// Nobody asked.
    Anybody,
    /// The owner of the token, or of the password, with this name.
    Known(&'a str),
}

/// Lets requests pass, or not.
pub(super) struct Gate {
    access: Access,
    attempts: Arc<Attempts>,
}

/// What a request has to show.
struct Rule<'a> {
    admission: &'a Admission,
    // Those whose passwords count.
    users: Option<&'a Arc<Users>>,
}

impl Gate {
    pub fn new(access: Access) -> Gate {
        Gate {
            access,
            attempts: Arc::default(),
        }
    }

    /// The same with other rules; who was wrong before is remembered.
    pub fn with(&self, access: Access) -> Gate {
        Gate {
            access,
            attempts: Arc::clone(&self.attempts),
        }
    }

    /// Whether a peer's word on whom it forwards for is believed.
    pub fn trusts(&self, peer: SocketAddr) -> bool {
        self.access.trusts(peer)
    }

    // What is asked for on a route; none: on the gateway's own paths.
    fn rule<'a>(&'a self, route: Option<&'a Route>) -> Rule<'a> {
        let admission = route.map_or(&Admission::AnyToken, |route| &route.admission);
        let own = route.and_then(|route| route.users.as_ref());
        let general = self.access.users.as_ref();
        // Where only some tokens count, whoever has a name here is not among them.
        let is_general = !matches!(admission, Admission::Tokens(_));
        Rule {
            admission,
            users: own.or(general.filter(|_| is_general)),
        }
    }

    /// Looks at what a request shows on a route; none: on one of the gateway's own paths.
    ///
    /// Errors: it shows nothing, or what nobody has (401), or what is for something else (403); or whoever
    /// sends it was wrong too often (429).
    pub fn admit<'a>(
        &'a self,
        route: Option<&'a Route>,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<Caller<'a>, Failure> {
        let rule = self.rule(route);
        let wanted = match (self.access.tokens.is_empty(), rule.users) {
            (true, None) => return Ok(Caller::Anybody),
            (true, Some(_)) => Wanted::Password,
            (false, None) => Wanted::Token,
            (false, Some(_)) => Wanted::Either,
        };
        match self.look(&rule, headers, wanted, peer) {
            // The field may be the upstream's then.
            Err(Failure::TooManyAttempts) => Err(Failure::TooManyAttempts),
            Err(_) if *rule.admission == Admission::Public => Ok(Caller::Anybody),
            looked => looked,
        }
    }

    /// The same on one of the gateway's own paths, which show what it does.
    ///
    /// Errors: likewise.
    pub fn admit_monitor<'a>(
        &'a self,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<Caller<'a>, Failure> {
        match (self.admit(None, headers, peer)?, &self.access.monitors) {
            (Caller::Known(name), Some(names)) if !names.iter().any(|it| it == name) => {
                Err(Failure::WrongToken(name.to_owned()))
            }
            (caller, _) => Ok(caller),
        }
    }

    fn look<'a>(
        &'a self,
        rule: &Rule<'a>,
        headers: &HeaderMap,
        wanted: Wanted,
        peer: SocketAddr,
    ) -> Result<Caller<'a>, Failure> {
        let nothing = || Failure::NoCredentials(wanted);
        let (scheme, secret) = shown(headers).ok_or_else(nothing)?;
        if scheme.eq_ignore_ascii_case("bearer") && wanted != Wanted::Password {
            return self.token(rule, secret, headers, peer);
        }
        let is_basic = scheme.eq_ignore_ascii_case("basic");
        let users = rule.users.filter(|_| is_basic).ok_or_else(nothing)?;
        let (name, password) = name_and_password(secret).ok_or_else(nothing)?;
        if let Some(name) = users.known(&name, &password) {
            return Ok(Caller::Known(name));
        }
        // Where nobody is asked, only what is ours is looked at, so that it stays here.
        if *rule.admission == Admission::Public && !users.has(&name) {
            return Err(nothing());
        }
        // Before the hash, which is made to take its time: those who guess all at once count too.
        let address = self.address(headers, peer);
        if !self.attempts.take(address, Instant::now()) {
            return Err(Failure::TooManyAttempts);
        }
        match users.verify(&name, &password) {
            Ok(Some(name)) => {
                self.attempts.give_back(address, Instant::now());
                Ok(Caller::Known(name))
            }
            Ok(None) => {
                self.note_wrong(address);
                Err(Failure::WrongPassword)
            }
            Err(TooBusy) => Err(Failure::TooManyAttempts),
        }
    }

    fn token<'a>(
        &'a self,
        rule: &Rule<'a>,
        secret: &str,
        headers: &HeaderMap,
        peer: SocketAddr,
    ) -> Result<Caller<'a>, Failure> {
        // All are looked at, each in a time that doesn't depend on where it differs.
        let mut found = None;
        for token in &self.access.tokens {
            if bool::from(token.secret.as_bytes().ct_eq(secret.as_bytes())) {
                found = Some(token.name.as_str());
            }
        }
        match (found, rule.admission) {
            (Some(name), Admission::Tokens(names)) if !names.iter().any(|it| it == name) => {
                Err(Failure::WrongToken(name.to_owned()))
            }
            (Some(name), _) => Ok(Caller::Known(name)),
            // It may be the upstream's.
            (None, Admission::Public) => Err(Failure::UnknownToken),
            (None, _) => {
                let address = self.address(headers, peer);
                if !self.attempts.take(address, Instant::now()) {
                    return Err(Failure::TooManyAttempts);
                }
                self.note_wrong(address);
                Err(Failure::UnknownToken)
            }
        }
    }

    fn note_wrong(&self, address: IpAddr) {
        let total = self.attempts.failed();
        log::warn!("wrong credentials from {address}, {total} so far from anybody");
    }

    /// Who sends it: behind a trusted proxy, whom that names.
    pub fn address(&self, headers: &HeaderMap, peer: SocketAddr) -> IpAddr {
        if !self.trusts(peer) {
            return peer.ip();
        }
        let named = headers.get_all("x-forwarded-for").iter().next_back();
        let last =
            named.and_then(|list| list.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
        last.unwrap_or(peer.ip())
    }
}

// The scheme and what follows it, of the one field that there may be.
fn shown(headers: &HeaderMap) -> Option<(&str, &str)> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (field, further) = (fields.next()?, fields.next());
    let (scheme, secret) = field.to_str().ok()?.split_once(' ')?;
    further.is_none().then_some((scheme, secret.trim()))
}

// RFC 7617, section 2.
fn name_and_password(encoded: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (name, password) = decoded.split_once(':')?;
    // The time that a hash takes grows with what is hashed.
    if password.len() > MAX_PASSWORD {
        return None;
    }
    Some((name.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::settings::Token;
    use crate::gateway::users::User;

    const PEER: ([u8; 4], u16) = ([192, 0, 2, 1], 99);

    fn access() -> Access {
        let token = |name: &str, secret: &str| Token {
            name: name.into(),
            secret: secret.into(),
        };
        Access {
            tokens: vec![
                token("anna", "0123456789abcdef"),
                token("ben", "fedcba9876543210"),
            ],
            ..Access::default()
        }
    }

    fn status(admission: &Admission, fields: &[&str]) -> Result<String, u16> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(header::AUTHORIZATION, field.parse().unwrap());
        }
        let route = Route {
            admission: admission.clone(),
            ..Route::ping()
        };
        let gate = Gate::new(access());
        match gate.admit(Some(&route), &headers, PEER.into()) {
            Ok(Caller::Known(name)) => Ok(name.to_owned()),
            Ok(Caller::Anybody) => Ok(String::new()),
            Err(failure) => {
                let problem = crate::http::Problem::from(failure);
                assert!(!problem.authenticate.is_empty());
                Err(problem.status.as_u16())
            }
        }
    }

    #[test]
    fn only_a_known_token_passes() {
        let any = Admission::AnyToken;
        assert_eq!(
            status(&any, &["Bearer 0123456789abcdef"]),
            Ok("anna".into())
        );
        assert_eq!(
            status(&any, &["bearer  fedcba9876543210"]),
            Ok("ben".into())
        );
        for wrong in [
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "Bearer",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "",
        ] {
            assert_eq!(status(&any, &[wrong]), Err(401), "{wrong:?}");
        }
        assert_eq!(status(&any, &[]), Err(401));
        let twice = ["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"];
        assert_eq!(status(&any, &twice), Err(401));
    }

    #[test]
    fn a_route_may_be_for_some_only_or_for_all() {
        let bens = Admission::Tokens(vec!["ben".into()]);
        assert_eq!(
            status(&bens, &["Bearer fedcba9876543210"]),
            Ok("ben".into())
        );
        assert_eq!(status(&bens, &["Bearer 0123456789abcdef"]), Err(403));
        assert_eq!(status(&bens, &[]), Err(401));
        assert_eq!(status(&Admission::Public, &[]), Ok(String::new()));
        assert_eq!(status(&Admission::Public, &["Basic x"]), Ok(String::new()));
        // So that it isn't passed on.
        let known = status(&Admission::Public, &["Bearer 0123456789abcdef"]);
        assert_eq!(known, Ok("anna".into()));
        let gate = Gate::new(Access::default());
        let admitted = gate.admit(None, &HeaderMap::new(), PEER.into());
        assert_eq!(admitted, Ok(Caller::Anybody));
    }

    fn users(names: &[&str]) -> Option<Arc<Users>> {
        // The password is `secret`.
        let hash = "$2y$04$6td68BC1b0cuF7kEW5R8Q.Eg/0QXQ6oEokGO1rF832yfCiTDukTaC";
        let users = names
            .iter()
            .map(|name| User::read(&format!("{name}:{hash}")));
        Some(Arc::new(Users::new(
            "x".into(),
            users.map(Result::unwrap).collect(),
        )))
    }

    fn basic(gate: &Gate, route: &Route, pair: &str) -> Result<String, u16> {
        let mut headers = HeaderMap::new();
        let field = format!("Basic {}", BASE64_STANDARD.encode(pair));
        headers.insert(header::AUTHORIZATION, field.parse().unwrap());
        match gate.admit(Some(route), &headers, PEER.into()) {
            Ok(Caller::Known(name)) => Ok(name.to_owned()),
            Ok(Caller::Anybody) => Ok(String::new()),
            Err(failure) => Err(failure.meaning().0.as_u16()),
        }
    }

    #[test]
    fn a_password_is_as_good_as_a_token_where_it_counts() {
        let gate = Gate::new(Access {
            users: users(&["carla"]),
            ..access()
        });
        let general = Route::ping();
        let own = Route {
            users: users(&["dora"]),
            admission: Admission::Tokens(vec!["ben".into()]),
            ..Route::ping()
        };
        let bens = Route {
            admission: Admission::Tokens(vec!["ben".into()]),
            ..Route::ping()
        };
        let public = Route {
            admission: Admission::Public,
            ..Route::ping()
        };
        for (route, pair, expected) in [
            (&general, "carla:secret", Ok("carla")),
            (&general, "carla:Secret", Err(401)),
            (&general, "dora:secret", Err(401)),
            (&general, "carla", Err(401)),
            (&general, ":", Err(401)),
            (&own, "dora:secret", Ok("dora")),
            (&own, "carla:secret", Err(401)),
            (&bens, "carla:secret", Err(401)),
            // What is ours stays here; what isn't may be the upstream's.
            (&public, "carla:other", Ok("")),
            (&public, "carla:secret", Ok("carla")),
            (&public, "somebody:secret", Ok("")),
        ] {
            assert_eq!(
                basic(&gate, route, pair),
                expected.map(str::to_owned),
                "{pair}"
            );
        }
    }

    #[test]
    fn who_guesses_has_to_wait_and_who_knows_has_not() {
        let gate = Gate::new(Access {
            users: users(&["carla"]),
            ..Access::default()
        });
        let route = Route::ping();
        assert_eq!(basic(&gate, &route, "carla:secret"), Ok("carla".into()));
        let mut refused = Vec::new();
        while refused.last() != Some(&429) {
            assert!(refused.len() < 50, "nobody is ever stopped");
            let guess = format!("carla:{}", refused.len());
            refused.push(basic(&gate, &route, &guess).unwrap_err());
        }
        assert!(refused.len() > 5, "a slip is forgiven");
        assert_eq!(basic(&gate, &route, "carla:secret"), Ok("carla".into()));
    }
}
