//! What an answer says of other resources, and of cookies, brought to where they are for whoever reads
//! it: a proxy gives what is behind it another address. Pure.

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

/// Where what an upstream says of itself is for the next one on the way.
pub trait Moves {
    /// The path for another path, query and fragment included; none: it stays as it is.
    fn path(&self, path: &str) -> Option<String>;

    /// Whose a reference to this scheme and authority is. One without a scheme has that of its reader.
    fn whose(&self, scheme: Option<&str>, authority: &str) -> Whose;

    /// Whether a cookie may be for this domain.
    fn keeps_domain(&self, domain: &str) -> bool;
}

/// Whose a reference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Somebody else's.
    Other,
    /// The upstream's own, by a scheme and an authority that hold for its reader.
    Own,
    /// The upstream's own, by an address that nobody else has: that goes.
    Hidden,
}

const FIELDS: [HeaderName; 2] = [header::LOCATION, header::CONTENT_LOCATION];

/// Changes Location, Content-Location (RFC 9110, sections 10.2.2 and 8.7) and Set-Cookie (RFC 6265,
/// section 4.1) accordingly. References to anything else, and those that are relative to the path, stay
/// byte for byte.
pub fn move_references(headers: &mut HeaderMap, moves: &impl Moves) {
    for name in FIELDS {
        if let Some(value) = headers.get(&name)
            && let Ok(text) = std::str::from_utf8(value.as_bytes())
            && let Some(moved) = moved_reference(text, moves)
            && let Ok(moved) = HeaderValue::from_bytes(moved.as_bytes())
        {
            headers.insert(name, moved);
        }
    }
    let cookies = headers.get_all(header::SET_COOKIE).iter();
    let moved: Vec<HeaderValue> = cookies
        .map(|cookie| {
            let moved = HeaderValue::from_bytes(&moved_cookie(cookie.as_bytes(), moves));
            moved.unwrap_or_else(|_| cookie.clone())
        })
        .collect();
    headers.remove(header::SET_COOKIE);
    for cookie in moved {
        headers.append(header::SET_COOKIE, cookie);
    }
}

// None: it stays as it is.
fn moved_reference(text: &str, moves: &impl Moves) -> Option<String> {
    let text = text.trim();
    // Browsers leave them out, so what stands before and behind them comes together.
    if text.contains('\t') {
        return None;
    }
    let (scheme, rest) = match text.split_once("//") {
        Some(("", rest)) => (None, rest),
        Some((scheme, rest)) => match scheme.strip_suffix(':') {
            Some(scheme) if is_scheme(scheme) => (Some(scheme), rest),
            _ => return moved_path(text, moves),
        },
        None => return moved_path(text, moves),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let whose = moves.whose(scheme, authority);
    if whose == Whose::Other {
        return None;
    }
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    };
    let moved = moves.path(&path).unwrap_or(path);
    match whose {
        Whose::Own => Some(format!("{}{moved}", &text[..text.len() - rest.len() + end])),
        _ => no_authority(moved),
    }
}

fn moved_path(text: &str, moves: &impl Moves) -> Option<String> {
    text.starts_with('/')
        .then(|| moves.path(text))?
        .and_then(no_authority)
}

// Two slashes at the beginning would be one, and browsers take `\` for a slash.
fn no_authority(path: String) -> Option<String> {
    (!path.starts_with("//") && !path.starts_with("/\\")).then_some(path)
}

fn is_scheme(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    !text.is_empty() && text.bytes().all(fits)
}

fn moved_cookie(cookie: &[u8], moves: &impl Moves) -> Vec<u8> {
    let mut moved = Vec::with_capacity(cookie.len() + 16);
    for (number, part) in cookie.split(|byte| *byte == b';').enumerate() {
        let (name, value) = match part.iter().position(|byte| *byte == b'=') {
            Some(at) => (part[..at].trim_ascii(), part[at + 1..].trim_ascii()),
            None => (part.trim_ascii(), &b""[..]),
        };
        let text = std::str::from_utf8(value).ok();
        // The first is the name and the value of the cookie itself, whatever it is called.
        if number > 0 && name.eq_ignore_ascii_case(b"domain") && !value.is_empty() {
            let domain = text.map(|text| text.strip_prefix('.').unwrap_or(text));
            if !domain.is_some_and(|domain| moves.keeps_domain(domain)) {
                continue;
            }
        }
        if number > 0 {
            moved.push(b';');
        }
        let is_path = number > 0 && name.eq_ignore_ascii_case(b"path");
        let path = text.filter(|text| is_path && text.starts_with('/'));
        match path.and_then(|path| moves.path(path)) {
            Some(path) => moved.extend_from_slice(format!(" Path={path}").as_bytes()),
            None => moved.extend_from_slice(part),
        }
    }
    moved
}

/// Whether two authorities are the same: in whatever case, and with or without the scheme's own port
/// (RFC 9110, section 4.2.3).
pub fn is_same_authority(scheme: &str, one: &str, other: &str) -> bool {
    let own_port = match scheme.eq_ignore_ascii_case("https") {
        true => ":443",
        false => ":80",
    };
    let bare = |authority: &str| {
        let authority = authority.to_ascii_lowercase();
        match authority.strip_suffix(own_port) {
            Some(bare) => bare.to_owned(),
            None => authority,
        }
    };
    bare(one) == bare(other)
}

/// Whether a path is another one or below it; what a prefix means.
pub fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a gateway moves them: everything is below a path.
    struct Below(&'static str);

    impl Moves for Below {
        fn path(&self, path: &str) -> Option<String> {
            (!is_below(path, self.0)).then(|| format!("{}{path}", self.0))
        }

        fn whose(&self, _: Option<&str>, authority: &str) -> Whose {
            match is_same_authority("http", authority, "gate.example:80") {
                true => Whose::Own,
                false => Whose::Other,
            }
        }

        fn keeps_domain(&self, domain: &str) -> bool {
            domain.eq_ignore_ascii_case("gate.example")
        }
    }

    /// As an agent does: its upstream's address is nobody else's.
    struct Own;

    impl Moves for Own {
        fn path(&self, path: &str) -> Option<String> {
            let rest = path.strip_prefix("/app")?;
            match rest.starts_with('/') {
                true => Some(rest.to_owned()),
                false if is_below(path, "/app") => Some(format!("/{rest}")),
                false => None,
            }
        }

        fn whose(&self, scheme: Option<&str>, authority: &str) -> Whose {
            let is_http = scheme.is_none_or(|scheme| scheme.eq_ignore_ascii_case("http"));
            match is_http && is_same_authority("http", authority, "10.0.0.1:8080") {
                true => Whose::Hidden,
                false => Whose::Other,
            }
        }

        fn keeps_domain(&self, _: &str) -> bool {
            true
        }
    }

    fn moved(moves: &impl Moves, name: HeaderName, values: &[&str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_str(value).unwrap();
            headers.append(name.clone(), value);
        }
        move_references(&mut headers, moves);
        let values = headers.get_all(name).iter();
        values.map(|it| it.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn references_are_brought_below_a_prefix() {
        for (location, expected) in [
            ("/", "/agents/py/"),
            ("/login?next=/a#b", "/agents/py/login?next=/a#b"),
            ("/a%2Fb//c", "/agents/py/a%2Fb//c"),
            ("/agents/pyx", "/agents/py/agents/pyx"),
            ("http://gate.example/x", "http://gate.example/agents/py/x"),
            (
                "https://GATE.example:80/x",
                "https://GATE.example:80/agents/py/x",
            ),
            ("http://gate.example", "http://gate.example/agents/py/"),
            ("http://gate.example?q", "http://gate.example/agents/py/?q"),
            ("//gate.example/x", "//gate.example/agents/py/x"),
            // Who knows its prefix already has put it there.
            ("/agents/py", "/agents/py"),
            ("/agents/py/x", "/agents/py/x"),
            ("/agents/py?x", "/agents/py?x"),
            (
                "http://gate.example/agents/py/x",
                "http://gate.example/agents/py/x",
            ),
            // Relative ones are right anyway, others lead elsewhere.
            ("x", "x"),
            ("./x", "./x"),
            ("../x//y", "../x//y"),
            ("?a=//b", "?a=//b"),
            ("#a", "#a"),
            ("", ""),
            ("http://gate.example:81/x", "http://gate.example:81/x"),
            ("https://other.example/x", "https://other.example/x"),
            ("//other.example/x", "//other.example/x"),
            ("http://gate.example.evil/x", "http://gate.example.evil/x"),
            ("http://gate.example@evil/x", "http://gate.example@evil/x"),
            ("mailto:a@b", "mailto:a@b"),
            ("data:text/plain,//x", "data:text/plain,//x"),
        ] {
            for name in FIELDS {
                assert_eq!(moved(&Below("/agents/py"), name, &[location]), [expected]);
            }
        }
    }

    #[test]
    fn an_upstreams_own_address_is_nobody_elses() {
        for (location, expected) in [
            ("http://10.0.0.1:8080/app/x", "/x"),
            ("HTTP://10.0.0.1:8080/app", "/"),
            ("//10.0.0.1:8080/app/x?y", "/x?y"),
            ("http://10.0.0.1:8080/app?y", "/?y"),
            ("/app/x", "/x"),
            ("/other", "/other"),
            ("/application", "/application"),
            // It would be another authority.
            ("/app//evil.example/x", "/app//evil.example/x"),
            ("/app/\\evil.example/x", "/app/\\evil.example/x"),
            ("/app/\t/evil.example", "/app/\t/evil.example"),
            (
                "http://10.0.0.1:8080/app//evil/x",
                "http://10.0.0.1:8080/app//evil/x",
            ),
            ("https://10.0.0.1:8080/app/x", "https://10.0.0.1:8080/app/x"),
            ("http://10.0.0.1/app/x", "http://10.0.0.1/app/x"),
        ] {
            assert_eq!(moved(&Own, header::LOCATION, &[location]), [expected]);
        }
    }

    #[test]
    fn cookies_are_for_what_has_set_them() {
        for (cookie, expected) in [
            ("a=b", "a=b"),
            ("a=b; Path=/", "a=b; Path=/agents/py/"),
            ("a=b;path=/x; HttpOnly", "a=b; Path=/agents/py/x; HttpOnly"),
            ("a=b; PATH = /x ;Secure", "a=b; Path=/agents/py/x;Secure"),
            ("a=b; Path=/agents/py", "a=b; Path=/agents/py"),
            ("a=b; Path=", "a=b; Path="),
            ("a=b; Path=x", "a=b; Path=x"),
            (
                "a=b; Domain=gate.example; Secure",
                "a=b; Domain=gate.example; Secure",
            ),
            ("a=b; domain=.Gate.Example", "a=b; domain=.Gate.Example"),
            ("a=b; Domain=example; Secure", "a=b; Secure"),
            ("a=b; Domain=other.example; Path=/", "a=b; Path=/agents/py/"),
            (
                "a=b; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
                "a=b; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
            ),
            ("path=/; Max-Age=1", "path=/; Max-Age=1"),
            ("domain=x", "domain=x"),
            ("a=\"/\"; Path=/", "a=\"/\"; Path=/agents/py/"),
        ] {
            assert_eq!(
                moved(&Below("/agents/py"), header::SET_COOKIE, &[cookie]),
                [expected]
            );
        }
        let several = moved(
            &Below("/p"),
            header::SET_COOKIE,
            &["a=1; Path=/", "b=2", "a=3"],
        );
        assert_eq!(several, ["a=1; Path=/p/", "b=2", "a=3"]);
        assert_eq!(
            moved(&Own, header::SET_COOKIE, &["a=b; Path=/app/x"]),
            ["a=b; Path=/x"]
        );
    }

    proptest! {
        #[test]
        fn whatever_stands_there_nothing_panics(text in "[ -~]{0,40}") {
            let value = HeaderValue::from_str(&text).unwrap();
            let mut headers = HeaderMap::new();
            for name in [header::LOCATION, header::SET_COOKIE] {
                headers.insert(name, value.clone());
            }
            move_references(&mut headers, &Below("/p"));
            move_references(&mut headers, &Own);
            prop_assert_eq!(headers.len(), 2);
        }
    }
}
