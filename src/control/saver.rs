//! Saving the running rules on a thread of its own, so that a slow disk does not hold up the control thread.
//!
//! A caller is answered when its change is on the disk. Changes that come while one is being written are written
//! together.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender};

use super::store::{Saved, Store};

/// What is to be saved, and what is to be done when it was tried.
struct Job {
    saved: Saved,
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
    pub fn start(store: Store) -> std::io::Result<Saver> {
        let (jobs, receiver) = crossbeam_channel::unbounded();
        let failure = Arc::new(Mutex::new(None));
        let shown = failure.clone();
        let thread = thread::Builder::new()
            .name("uvs-store".to_owned())
            .spawn(move || work(&store, &receiver, &shown))?;
        Ok(Saver {
            jobs: Some(jobs),
            failure,
            thread: Some(thread),
        })
    }

    /// Saves soon, then runs `then`, also when saving failed: the change is live all the same.
    pub fn save(&self, saved: Saved, then: impl FnOnce(Option<String>) + Send + 'static) {
        let job = Job {
            saved,
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

fn work(store: &Store, jobs: &Receiver<Job>, failure: &Mutex<Option<String>>) {
    while let Ok(job) = jobs.recv() {
        let mut saved = job.saved;
        let mut waiting = vec![job.then];
        for later in jobs.try_iter() {
            saved = later.saved;
            waiting.push(later.then);
        }
        let result = store.save(&saved).err().map(|error| error.to_string());
        if let Some(reason) = &result {
            log::error!("the change is live, but it is not saved: {reason}");
        }
        *failure.lock().unwrap_or_else(PoisonError::into_inner) = result.clone();
        waiting.into_iter().for_each(|then| then(result.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::store::Found;
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
        for n in 0..50 {
            let (done, path) = (done.clone(), folder.path().join("rules.json"));
            saver.save(saved(n), move |failure| {
                assert_eq!(failure, None);
                let text = std::fs::read_to_string(path).unwrap();
                done.send((n, text)).unwrap();
            });
        }
        drop(saver);
        let answers: Vec<_> = answers.try_iter().collect();
        assert_eq!(
            answers.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            (0..50).collect::<Vec<_>>()
        );
        for (n, text) in answers {
            let config = text.split("\"config\":").nth(1).and_then(|rest| rest.split('}').next());
            assert!(
                config.unwrap().parse::<u64>().unwrap() >= n,
                "{n} was answered before it was saved"
            );
        }
        let store = Store::open(folder.path(), Duration::ZERO).unwrap();
        assert!(matches!(store.load().unwrap(), Found::Saved(found) if found.config == Some(49)));
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
            saver.save(saved(n), move |failure| done.send(failure).unwrap());
            answer.recv_timeout(Duration::from_secs(20)).unwrap()
        };
        let failure = save(1);
        assert!(failure.as_ref().unwrap().contains("cannot write"));
        assert_eq!(saver.failure(), failure);
        std::fs::remove_dir(&obstacle).unwrap();
        assert_eq!((save(2), saver.failure()), (None, None));
    }
}
