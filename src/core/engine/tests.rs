//! Stories of the engine, told on a model of the database. The database's own tests tell them
//! again on the real one.

mod administration;
mod agents;
mod care;
pub(crate) mod disk;
mod graph;
pub(crate) mod histories;
mod leases;
mod naive;
mod replays;
mod slices;
mod submissions;
mod wishes;
pub(crate) mod world;

use world::World;

/// A story and what it is called.
pub(crate) type Story = (&'static str, fn(&mut World));

/// Makes a list of stories, and a test of each.
macro_rules! stories {
    ($($(#[$doc:meta])* fn $name:ident($world:ident: &mut World) $body:block)*) => {
        pub(super) const STORIES: &[super::Story] =
            &[$((stringify!($name), |$world: &mut World| $body)),*];
        $(
            $(#[$doc])*
            #[test]
            fn $name() {
                super::tell(STORIES, stringify!($name));
            }
        )*
    };
}
use stories;

fn tell(stories: &[Story], name: &str) {
    let (_, story) = stories.iter().find(|(other, _)| *other == name).unwrap();
    story(&mut World::new(Box::<disk::Model>::default()));
}

/// Returns all stories.
pub(crate) fn all() -> impl Iterator<Item = &'static Story> {
    submissions::STORIES
        .iter()
        .chain(graph::STORIES)
        .chain(agents::STORIES)
        .chain(administration::STORIES)
        .chain(leases::STORIES)
        .chain(wishes::STORIES)
        .chain(care::STORIES)
}
