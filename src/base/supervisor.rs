//! What systemd is told, where it supervises this program (sd_notify(3)). Without it nothing happens.

use std::sync::Mutex;

use sd_notify::NotifyState;

use super::threads::lock;

/// Whether somebody wants to be told.
pub fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The program serves; or it does so again, with other settings.
pub fn started() {
    send(&[NotifyState::Ready]);
}

/// The settings are being read again.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        send(&[NotifyState::Reloading, now]);
    }
}

/// The program stops.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// How the program is, in words, if that has changed; and, if its threads go on, that it lives.
pub fn tell(state: &str, is_alive: bool) {
    static TOLD: Mutex<String> = Mutex::new(String::new());
    let mut told = lock(&TOLD);
    if *told != state {
        told.clear();
        told.push_str(state);
        send(&[NotifyState::Status(state)]);
    }
    if is_alive {
        send(&[NotifyState::Watchdog]);
    }
}

fn send(state: &[NotifyState<'_>]) {
    if is_there()
        && let Err(error) = sd_notify::notify(state)
    {
        log::debug!("systemd can't be told: {error}");
    }
}
