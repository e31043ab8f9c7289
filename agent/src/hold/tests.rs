//! Both ends of the socket together, with real processes and descriptors.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::session::{Host, Session, Turn};
use super::table::{Item, Table};
use super::wire::{Data, Ended, Fds, Key};
use super::*;

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

struct Children(Vec<i32>);

impl Host for Children {
    fn is_child(&self, pid: i32) -> bool {
        self.0.contains(&pid)
    }

    fn now_ms(&self) -> u64 {
        7
    }
}

fn item(key: &str, pid: Option<i32>) -> Item {
    let key = Key::try_from(key).unwrap();
    Item { key, pid, data: Data::new(), fds: Fds::new(), ended: None, announced: false }
}

fn ended(exit: Exit) -> Ended {
    Ended { exit, at_ms: 5 }
}

/// Runs init's side until the agent's side has an answer.
async fn serve<T>(session: &mut Session, table: &mut Table, agent: impl Future<Output = T>) -> T {
    let mut agent = std::pin::pin!(agent);
    loop {
        session.turn(table, &Children(vec![40, 41]));
        tokio::select! {
            biased;
            result = &mut agent => return result,
            () = tokio::task::yield_now() => {}
        }
    }
}

fn connect(table: &mut Table) -> (Session, Holder, Vec<Held>) {
    let (init, agent) = pair();
    let mut session = Session::new(init);
    // The agent's constructor blocks: it needs init in another thread.
    std::thread::scope(|scope| {
        let handle = tokio::runtime::Handle::current();
        let agent = scope.spawn(move || {
            let _guard = handle.enter();
            Holder::from_socket(agent).unwrap()
        });
        while !agent.is_finished() {
            session.turn(table, &Children(vec![40, 41]));
        }
        let (holder, held) = agent.join().unwrap();
        (session, holder, held)
    })
}

#[tokio::test]
async fn a_new_agent_gets_back_what_the_old_one_gave() {
    let mut table = Table::new();
    let (mut session, holder, held) = connect(&mut table);
    assert!(held.is_empty());
    let (mut reader, writer) = std::io::pipe().unwrap();
    serve(&mut session, &mut table, holder.hold("pod/web/0", Some(40), &[writer.as_fd()], b"own")).await.unwrap();
    drop((writer, holder, session));

    let (mut session, holder, mut held) = connect(&mut table);
    let item = held.pop().unwrap();
    assert_eq!((item.key.as_str(), item.pid, item.data.as_slice()), ("pod/web/0", Some(40), b"own".as_slice()));
    assert_eq!(item.exited, None);
    std::fs::File::from(item.fds.into_iter().next().unwrap()).write_all(b"alive").unwrap();

    serve(&mut session, &mut table, holder.forget("pod/web/0")).await.unwrap();
    serve(&mut session, &mut table, holder.forget("pod/web/0")).await.unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "alive", "the pipe ends when init has let go of it");
}

#[tokio::test]
async fn exits_are_told_once_and_again_to_the_next_agent() {
    let mut table = Table::new();
    let (mut session, holder, _) = connect(&mut table);
    serve(&mut session, &mut table, holder.hold("a", Some(40), &[], b"")).await.unwrap();
    serve(&mut session, &mut table, holder.hold("b", Some(41), &[], b"")).await.unwrap();
    table.ended(41, ended(Exit::Signal(9)));
    let told = serve(&mut session, &mut table, holder.next_exit()).await.unwrap();
    assert_eq!(told, Exited { key: "b".into(), pid: 41, exit: Exit::Signal(9), at_ms: 5 });

    let (_session, _holder, held) = connect(&mut table);
    let exits: Vec<_> = held.into_iter().filter_map(|held| held.exited).collect();
    assert_eq!(exits, [told]);
}

#[tokio::test]
async fn an_exit_before_its_hold_is_not_lost() {
    let mut table = Table::new();
    let (mut session, holder, _) = connect(&mut table);
    table.ended(70, ended(Exit::Code(3)));
    serve(&mut session, &mut table, holder.hold("early", Some(70), &[], b"")).await.unwrap();
    let told = serve(&mut session, &mut table, holder.next_exit()).await.unwrap();
    assert_eq!((told.key.as_str(), told.exit, told.at_ms), ("early", Exit::Code(3), 5));
}

#[test]
fn a_number_given_to_a_new_process_is_not_taken_for_the_old_one() {
    let mut table = Table::new();
    table.ended(40, ended(Exit::Code(1)));
    table.hold(item("new", Some(40)), |_| true, 0).unwrap();
    assert_eq!(table.items()[0].ended, None);
    table.hold(item("unknown", Some(99)), |_| false, 8).unwrap();
    assert_eq!(table.items()[1].ended, Some(Ended { exit: Exit::Lost, at_ms: 8 }));
}

#[test]
fn a_full_table_refuses_and_still_replaces() {
    let mut table = Table::new();
    for number in 0..MAX_ITEMS {
        table.hold(item(&number.to_string(), None), |_| true, 0).unwrap();
    }
    assert_eq!(table.hold(item("one more", None), |_| true, 0), Err(Refusal::Full));
    table.hold(item("17", Some(40)), |_| true, 0).unwrap();
    assert_eq!(table.running().collect::<Vec<_>>(), [40]);
    for pid in 1000..2000 {
        table.ended(pid, ended(Exit::Code(0)));
    }
}

#[tokio::test]
async fn garbage_and_bounds_never_hurt_init() {
    let mut table = Table::new();
    let (init, agent) = pair();
    let mut session = Session::new(init);
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let flags = rustix::net::SendFlags::empty();
    rustix::net::send(&agent, &[0xff; 4096], flags).unwrap();
    rustix::net::send(&agent, &[1; 9000], flags).unwrap();
    wire::send(&agent, &wire::Request::Alive, &[null.as_fd()]).unwrap();
    assert_eq!(session.turn(&mut table, &Children(vec![])), Turn::Idle);
    assert!(session.take_alive() && !session.take_alive());
    drop(agent);
    assert_eq!(session.turn(&mut table, &Children(vec![])), Turn::Gone);

    let (mut session, holder, _) = connect(&mut table);
    let nine = [null.as_fd(); 9];
    assert!(matches!(holder.hold("k", None, &nine, b"").await, Err(HoldError::TooLarge { .. })));
    assert!(matches!(holder.hold("k", None, &[], &[0; 513]).await, Err(HoldError::TooLarge { .. })));
    assert!(matches!(holder.hold(&"k".repeat(201), None, &[], b"").await, Err(HoldError::TooLarge { .. })));
    serve(&mut session, &mut table, holder.hold("k", None, &nine[..8], &[0; 512])).await.unwrap();
    assert_eq!(table.items()[0].fds.len(), 8);
}

#[tokio::test]
async fn a_lost_init_is_an_error_and_never_a_hang() {
    let mut table = Table::new();
    let (session, holder, _) = connect(&mut table);
    drop(session);
    assert!(matches!(holder.next_exit().await, Err(HoldError::Gone(_))));
    assert!(matches!(holder.hold("k", None, &[], b"").await, Err(HoldError::Gone(_))));
}

#[tokio::test]
async fn a_ping_is_answered_by_whoever_waits_for_exits() {
    let mut table = Table::new();
    let (mut session, holder, _) = connect(&mut table);
    session.ping();
    session.turn(&mut table, &Children(vec![]));
    assert!(!session.take_alive());
    serve(&mut session, &mut table, holder.hold("k", Some(40), &[], b"")).await.unwrap();
    session.turn(&mut table, &Children(vec![]));
    assert!(!session.take_alive(), "nobody waits for exits, so the loop is not known to live");
    table.ended(40, ended(Exit::Code(0)));
    serve(&mut session, &mut table, holder.next_exit()).await.unwrap();
    session.turn(&mut table, &Children(vec![]));
    assert!(session.take_alive());
}

#[test]
fn a_list_longer_than_a_turn_goes_on_without_being_asked() {
    let mut table = Table::new();
    for number in 0..200 {
        table.hold(item(&number.to_string(), None), |_| true, 0).unwrap();
    }
    let (init, agent) = pair();
    let mut session = Session::new(init);
    wire::send(&agent, &wire::Request::List, &[]).unwrap();
    let mut told = 0;
    loop {
        assert_eq!(session.turn(&mut table, &Children(vec![])), Turn::Idle);
        let mut buffer = [0; wire::MAX_DATAGRAM];
        while let Ok(received) = wire::receive(&agent, &mut buffer) {
            match postcard::from_bytes(&buffer[..received.length]).unwrap() {
                wire::Reply::Item { .. } => told += 1,
                wire::Reply::ListEnd => {
                    assert_eq!(told, 200);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(session.is_stalled(), "after {told} items init would sleep for ever");
    }
}
