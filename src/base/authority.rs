//! Host and port, as they stand in a URL.

// RFC 3986, section 3.2, without user information: a name or an address, and perhaps a port that
// something can listen on.
pub(crate) fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(literal) => {
            let (address, _) = literal.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            authority.split_at(address.len() + 2)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_name = (1..=253).contains(&host.len()) && host.chars().all(fits);
    if !host.starts_with('[') && !is_name {
        return None;
    }
    match port.strip_prefix(':') {
        None => port.is_empty().then_some((host, None)),
        Some(port) => {
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|port| digits && *port > 0)?;
            Some((host, Some(port)))
        }
    }
}

/// What is read of a user's name and password.
type Login = Option<(String, String)>;

/// User name and password, percent-encoded, and what follows them.
///
/// Errors: they are not UTF-8.
pub(crate) fn login_of(authority: &str) -> Result<(Login, &str), String> {
    let Some((userinfo, authority)) = authority.rsplit_once('@') else {
        return Ok((None, authority));
    };
    let (username, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let decode = |text: &str| {
        let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
        decoded
            .map(|text| text.into_owned())
            .map_err(|_| "user and password must be UTF-8".to_owned())
    };
    Ok((Some((decode(username)?, decode(password)?)), authority))
}
