//! Saving the running rules on a thread of its own, so that a slow disk does not hold up the control thread.
//!
//! A caller is answered when its change is on the disk. Changes that come while one is being written are written
//! together. All rules are written at start, at the end, for many commands at once, and when the journal of changes has grown
//! long: then after the caller was answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender};

use super::protocol::Command;
use super::store::{Saved, Store};

/// What is to be saved, and what is to be done when it was tried.
struct Job {
    saved: Saved,
    commands: Vec<Command>,
    then: Then,
}

/// Gets the reason when saving failed.
type Then = Box<dyn FnOnce(Option<String>) + Send>;

/// The saving thread. Dropping it waits until everything is written.
pub struct Saver {
    jobs: Option<Sender<Job>>,
    failure: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// Starts it.
    pub fn start(mut store: Store) -> std::io::Result<Saver> {
        let (jobs, receiver) = crossbeam_channel::unbounded();
        let failure = Arc::new(Mutex::new(None));
        let shown = failure.clone();
        let thread = thread::Builder::new()
            .name("uvs-store".to_owned())
            .spawn(move || work(&mut store, &receiver, &shown))?;
        Ok(Saver {
            jobs: Some(jobs),
            failure,
            thread: Some(thread),
        })
    }

    /// Saves the rules soon as they are after these commands, which were carried out since the last call; then runs `then`,
    /// also when saving failed: the change is live all the same.
    pub fn save(&self, saved: Saved, commands: Vec<Command>, then: impl FnOnce(Option<String>) + Send + 'static) {
        let job = Job {
            saved,
            commands,
            then: Box::new(then),
        };
        let Some(jobs) = &self.jobs else { return };
        // The thread lives as long as we do: it ends when the channel is closed.
        if let Err(unsent) = jobs.send(job) {
            (unsent.0.then)(Some("the thread that saves is gone".to_owned()));
        }
    }

    /// Why the last attempt failed, if it did.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that saves the rules panicked");
        }
    }
}

fn work(store: &mut Store, jobs: &Receiver<Job>, failure: &Mutex<Option<String>>) {
    let mut last = None;
    while let Ok(job) = jobs.recv() {
        let Job {
            mut saved,
            mut commands,
            then,
        } = job;
        let mut waiting = vec![then];
        for later in jobs.try_iter() {
            saved = later.saved;
            commands.extend(later.commands);
            waiting.push(later.then);
        }
        let result = store.save(&saved, commands).err().map(|error| error.to_string());
        if let Some(reason) = &result {
            log::error!("the change is live, but it is not saved: {reason}");
        }
        *failure.lock().unwrap_or_else(PoisonError::into_inner) = result.clone();
        waiting.into_iter().for_each(|then| then(result.clone()));
        // Nobody waits for this but who comes meanwhile.
        if store.is_long() {
            save_all(store, &saved);
        }
        last = Some(saved);
    }
    if let Some(saved) = last
        && !store.is_whole()
    {
        save_all(store, &saved);
    }
}

/// A failure loses nothing that is not lost already.
fn save_all(store: &mut Store, saved: &Saved) {
    if let Err(error) = store.save_all(saved) {
        log::warn!("rules.json stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::store::found_at_a_start;
    use super::*;

    fn saved(config: u64) -> Saved {
        Saved {
            config: Some(config),
            ..Saved::default()
        }
    }

    #[test]
    fn answers_come_when_it_is_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Duration::ZERO).unwrap();
        let saver = Saver::start(store).unwrap();
        let (done, answers) = crossbeam_channel::unbounded();
        let mut first = Vec::new();
        for n in 0..50 {
            let (done, path) = (done.clone(), folder.path().to_owned());
            saver.save(saved(n), vec![], move |failure| {
                assert_eq!(failure, None);
                done.send((n, found_at_a_start(&path).config)).unwrap();
            });
            if n == 0 {
                // All rules are written once; the others are changes in the journal.
                first.extend(answers.recv_timeout(Duration::from_secs(20)));
            }
        }
        drop(saver);
        let answers: Vec<_> = first.into_iter().chain(answers.try_iter()).collect();
        assert_eq!(
            answers.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            (0..50).collect::<Vec<_>>()
        );
        for (n, found) in answers {
            assert!(found >= Some(n), "{n} was answered before it was saved");
        }
        assert_eq!(found_at_a_start(folder.path()).config, Some(49));
    }

    /// Goal: whoever looks at rules.json of a daemon that has ended sees the rules, and a long journal does not stay.
    #[test]
    fn the_journal_ends_with_the_daemon_and_when_it_is_long() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("rules.journal");
        let saver = Saver::start(Store::open(folder.path(), Duration::ZERO).unwrap()).unwrap();
        let save = |n, commands| {
            let (done, answer) = crossbeam_channel::bounded(1);
            saver.save(saved(n), commands, move |failure| done.send(failure).unwrap());
            assert_eq!(answer.recv_timeout(Duration::from_secs(20)).unwrap(), None);
        };
        save(0, vec![]);
        save(1, vec![]);
        assert!(journal.exists());
        let long = "n".repeat(2 << 20);
        save(
            2,
            vec![Command::SetSysctl {
                name: long,
                value: String::new(),
            }],
        );
        save(3, vec![]);
        assert!(std::fs::metadata(&journal).unwrap().len() < 1 << 20);
        drop(saver);
        assert!(!journal.exists());
        assert_eq!(found_at_a_start(folder.path()).config, Some(3));
    }

    #[test]
    fn failures_are_shown_until_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Duration::ZERO).unwrap();
        let obstacle = folder.path().join("rules.json.new");
        std::fs::create_dir(&obstacle).unwrap();
        let saver = Saver::start(store).unwrap();
        let save = |n| {
            let (done, answer) = crossbeam_channel::bounded(1);
            saver.save(saved(n), vec![], move |failure| done.send(failure).unwrap());
            answer.recv_timeout(Duration::from_secs(20)).unwrap()
        };
        let failure = save(1);
        assert!(failure.as_ref().unwrap().contains("cannot write"));
        assert_eq!(saver.failure(), failure);
        std::fs::remove_dir(&obstacle).unwrap();
        assert_eq!((save(2), saver.failure()), (None, None));
    }
}
