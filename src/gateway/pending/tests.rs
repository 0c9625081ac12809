use proptest::prelude::*;

use super::*;
use crate::wire::json::{ask, canonical};

const NO_TIME: Duration = Duration::ZERO;

fn id(number: u8) -> Correlation {
    Correlation([number; 16])
}

fn request(word: &str) -> Bytes {
    canonical(&ask(word)).unwrap()
}

#[test]
fn each_reply_reaches_its_own_caller_once() {
    let pending = Pending::new(8);
    let first = pending.register(id(1), None, 0).unwrap();
    let second = pending.register(id(2), None, 0).unwrap();
    let now = Instant::now();
    assert_eq!(pending.complete(id(2), "two", now), Completion::Delivered);
    assert_eq!(pending.complete(id(1), "one", now), Completion::Delivered);
    assert_eq!(pending.complete(id(1), "again", now), Completion::Unknown);
    assert_eq!(pending.complete(id(9), "foreign", now), Completion::Unknown);
    assert_eq!(first.wait(NO_TIME), Some("one"));
    assert_eq!(second.wait(NO_TIME), Some("two"));
    assert!(pending.is_empty());
}

#[test]
fn a_late_reply_is_told_from_a_foreign_one() {
    let pending: Pending<u32> = Pending::new(8);
    let ticket = pending.register(id(1), None, 0).unwrap();
    assert_eq!(ticket.wait(NO_TIME), None);
    let later = Instant::now() + Duration::from_secs(5);
    let Completion::Late(by) = pending.complete(id(1), 1, later) else {
        panic!("not late");
    };
    assert!(by >= Duration::from_secs(5) && by < Duration::from_secs(60));
    assert!(pending.is_empty());
}

#[test]
fn who_waits_on_a_lost_connection_is_told() {
    let pending = Pending::new(8);
    let first = pending.register(id(1), None, 0).unwrap();
    let second = pending.register(id(2), Some(request("ping")), 1).unwrap();
    pending.lost(1, || "lost");
    assert_eq!(second.wait(NO_TIME), Some("lost"));
    assert_eq!(pending.len(), 1);
    pending.complete(id(1), "one", Instant::now());
    assert_eq!(first.wait(NO_TIME), Some("one"));
}

#[test]
fn a_full_table_refuses_and_a_dropped_ticket_frees_its_place() {
    let pending: Pending<u32> = Pending::new(1);
    let ticket = pending.register(id(1), None, 0).unwrap();
    assert_eq!(pending.register(id(2), None, 0).err(), Some(Full));
    drop(ticket);
    assert!(pending.register(id(2), None, 0).is_ok());
}

#[test]
fn without_correlation_the_oldest_equal_request_is_answered() {
    let pending = Pending::new(8);
    let ping_1 = pending.register(id(1), Some(request("ping")), 0).unwrap();
    let other = pending.register(id(2), Some(request("other")), 0).unwrap();
    let ping_2 = pending.register(id(3), Some(request("ping")), 0).unwrap();
    let closed = pending.register(id(4), None, 0).unwrap();
    let to = |word| Received::Request(request(word));
    assert_eq!(
        pending.complete_oldest(&to("ping"), 1),
        Completion::Delivered
    );
    assert_eq!(ping_1.wait(NO_TIME), Some(1));
    assert_eq!(
        pending.complete_oldest(&to("ping"), 2),
        Completion::Delivered
    );
    assert_eq!(ping_2.wait(NO_TIME), Some(2));
    assert_eq!(pending.complete_oldest(&to("ping"), 3), Completion::Unknown);
    let unknown = Received::Unknown;
    assert_eq!(pending.complete_oldest(&unknown, 4), Completion::Delivered);
    assert_eq!(other.wait(NO_TIME), Some(4));
    assert_eq!(pending.complete_oldest(&unknown, 5), Completion::Unknown);
    assert_eq!(closed.wait(NO_TIME), None);
}

#[derive(Debug, Clone)]
enum Step {
    Register(u8, bool),
    Complete(u8),
    CompleteOldest(u8),
    GiveUp(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..12u8, any::<bool>()).prop_map(|(who, open)| Step::Register(who, open)),
        (0..12u8).prop_map(Step::Complete),
        (0..4u8).prop_map(Step::CompleteOldest),
        (0..12u8).prop_map(Step::GiveUp),
    ]
}

proptest! {
    // The value of a reply is the request it answers; whatever happens in whatever order,
    // nobody gets another's.
    #[test]
    fn no_order_of_events_crosses_replies(steps in proptest::collection::vec(step(), 0..80)) {
        let pending: Pending<Bytes> = Pending::new(6);
        let word = |who: u8| request(&(who % 4).to_string());
        let mut tickets: HashMap<u8, Ticket<'_, Bytes>> = HashMap::new();
        let mut answered: HashMap<u8, Ticket<'_, Bytes>> = HashMap::new();
        for step in steps {
            match step {
                Step::Register(who, open) => {
                    if tickets.contains_key(&who) || answered.contains_key(&who) {
                        continue;
                    }
                    let result = pending.register(id(who), open.then(|| word(who)), 0);
                    prop_assert_eq!(result.is_ok(), tickets.len() < 6);
                    if let Ok(ticket) = result {
                        tickets.insert(who, ticket);
                    }
                }
                Step::Complete(who) => {
                    let outcome = pending.complete(id(who), word(who), Instant::now());
                    prop_assert_eq!(outcome == Completion::Delivered, tickets.contains_key(&who));
                    answered.extend(tickets.remove_entry(&who));
                }
                Step::CompleteOldest(number) => {
                    let before = pending.len();
                    let received = Received::Request(word(number));
                    if pending.complete_oldest(&received, word(number)) == Completion::Delivered {
                        prop_assert_eq!(pending.len(), before - 1);
                        let done: Vec<u8> = tickets.iter()
                            .filter(|(_, ticket)| !ticket.channel.1.is_empty())
                            .map(|(who, _)| *who)
                            .collect();
                        prop_assert_eq!(done.len(), 1);
                        answered.extend(tickets.remove_entry(&done[0]));
                    }
                }
                Step::GiveUp(who) => {
                    if let Some(ticket) = tickets.remove(&who) {
                        prop_assert_eq!(ticket.wait(NO_TIME), None);
                    }
                }
            }
            prop_assert_eq!(pending.len(), tickets.len());
        }
        for (who, ticket) in answered {
            prop_assert_eq!(ticket.wait(NO_TIME), Some(word(who)));
        }
    }
}

/// Channels are used again, also beside those whose callers have given up just as the reply came.
#[test]
fn no_reply_is_left_for_another_caller() {
    let pending = Pending::new(64);
    let (sent, asked) = crossbeam_channel::unbounded();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (pending, sent) = (&pending, sent.clone());
            scope.spawn(move || {
                for round in 0..3000_u16 {
                    let mut name = [thread; 16];
                    name[..2].copy_from_slice(&round.to_le_bytes());
                    let ticket = pending.register(Correlation(name), None, 0).unwrap();
                    sent.send(name).unwrap();
                    let patience = Duration::from_micros(u64::from(round % 50));
                    if let Some(reply) = ticket.wait(patience) {
                        assert_eq!(reply, name);
                    }
                }
            });
        }
        drop(sent);
        for name in asked {
            pending.complete(Correlation(name), name, Instant::now());
        }
    });
    assert!(pending.is_empty());
}
