//! Whether a request may pass: bearer tokens (RFC 6750).

use http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use super::settings::{Access, Admission};
use crate::http::Failure;

/// Who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller<'a> {
    /// Nobody asked.
    Anybody,
    /// The owner of the token with this name.
    Known(&'a str),
}

/// Looks at the token of a request.
///
/// Errors: it has none or an unknown one (401), or one that is for something else (403).
pub(super) fn admit<'a>(
    access: &'a Access,
    admission: &Admission,
    headers: &HeaderMap,
) -> Result<Caller<'a>, Failure> {
    if access.tokens.is_empty() {
        return Ok(Caller::Anybody);
    }
    let name = match owner(access, headers) {
        Ok(name) => name,
        // The field may be the upstream's then.
        Err(_) if *admission == Admission::Public => return Ok(Caller::Anybody),
        Err(failure) => return Err(failure),
    };
    match admission {
        Admission::Tokens(names) if !names.iter().any(|it| it == name) => {
            Err(Failure::WrongToken(name.to_owned()))
        }
        _ => Ok(Caller::Known(name)),
    }
}

// Whose token a request carries.
fn owner<'a>(access: &'a Access, headers: &HeaderMap) -> Result<&'a str, Failure> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (field, further) = (fields.next(), fields.next());
    let secret = field
        .filter(|_| further.is_none())
        .and_then(|field| field.to_str().ok())
        .and_then(|field| field.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, secret)| secret.trim());
    let Some(secret) = secret else {
        return Err(Failure::NoToken);
    };
    // All are looked at, each in a time that doesn't depend on where it differs.
    let mut found = None;
    for token in &access.tokens {
        if bool::from(token.secret.as_bytes().ct_eq(secret.as_bytes())) {
            found = Some(token.name.as_str());
        }
    }
    found.ok_or(Failure::UnknownToken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::settings::Token;

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
        match admit(&access(), admission, &headers) {
            Ok(Caller::Known(name)) => Ok(name.to_owned()),
            Ok(Caller::Anybody) => Ok(String::new()),
            Err(failure) => {
                let problem = crate::http::Problem::from(failure);
                assert!(problem.authenticate.is_some());
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
        let none = Access::default();
        let admitted = admit(&none, &Admission::AnyToken, &HeaderMap::new());
        assert_eq!(admitted, Ok(Caller::Anybody));
    }
}
