//! Images for containers: fetched from where the manifest says, by digest, and looked up without a network.

use skeg_images::{Client, Digest, Endpoint, Platform, Progress, Reference, Sources, Store};
use skeg_protocol::manifest::{Image, ImageSource, Probe, PullPolicy};
use skeg_protocol::{Container, Pod};
use tokio::task::spawn_blocking;

use super::chain;
use super::sources::Registries;
use crate::ask;
use crate::core::ImageFailure;

/// Folder of the image store below `state_dir`.
pub const STORE: &str = "store";

/// The images that pods run from.
pub fn wanted<'a>(pods: impl Iterator<Item = &'a Pod>) -> Vec<Digest> {
    pods.flat_map(Pod::all_containers).map(|container| Digest(container.image.digest.0)).collect()
}

/// The device's images.
pub struct Images {
    /// What is here.
    pub store: Store,
    /// What this device can run.
    pub platform: Platform,
    /// How registries are reached.
    pub registries: Registries,
    /// The controller's registry, where there is a controller.
    pub controller: Option<Endpoint>,
}

impl Images {
    /// Makes the image of a pod's container whole on this device; quick and without a network where it is already.
    ///
    /// # Errors
    /// The image and everything that led to the failure, in one line.
    pub async fn ensure(&self, pod: &Pod, container: &Container) -> Result<skeg_images::Image, ImageFailure> {
        let (image, policy) = (&container.image, container.pull_policy);
        let digest = Digest(image.digest.0);
        let found = self.look_up(digest).await.map_err(|error| {
            ImageFailure::Pull(format!("image {:?} ({digest}): {}", image.reference, chain(&error)))
        })?;
        match (found, policy) {
            (Some(found), _) => Ok(found),
            (None, PullPolicy::IfNotPresent) => {
                let missing = self.registries.missing(pod);
                // As on Kubernetes' nodes it is tried without; whoever has to mend it reads why that was not enough.
                let told = |message| ImageFailure::Pull([vec![message], missing].concat().join("; "));
                self.pull(image, Some(pod), &|_| {}).await.map_err(told)
            }
            (None, PullPolicy::Never) => Err(ImageFailure::Never(format!(
                "image {:?} ({digest}) is not on this device, and its pull policy is Never",
                image.reference
            ))),
        }
    }

    /// Fetches an image, for a pod with its secrets, and names it.
    ///
    /// # Errors
    /// The image and everything that led to the failure, in one line.
    pub async fn pull(
        &self,
        image: &Image,
        pod: Option<&Pod>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<skeg_images::Image, String> {
        let digest = Digest(image.digest.0);
        let named = |error: &dyn std::error::Error| format!("image {:?} ({digest}): {}", image.reference, chain(error));
        let sources = self.sources(image, pod).map_err(|error| format!("image {:?}: {error}", image.reference))?;
        let pulled = self.store.pull(&sources, &digest, &self.platform, progress).await;
        let pulled = pulled.map_err(|error| named(&error))?;
        if let Err(error) = self.store.name(&digest, &image.reference) {
            // Only people look for it by name.
            log::warn!("naming {digest} {:?}: {}", image.reference, chain(&error));
        }
        Ok(pulled)
    }

    /// Asks the registry what a reference means now.
    ///
    /// # Errors
    /// It is no reference, or the registry does not say.
    pub async fn resolve(&self, reference: &str) -> Result<Image, String> {
        let parsed: Reference = reference.parse().map_err(|error| chain(&error))?;
        let mut image = Image {
            reference: reference.to_owned(),
            digest: skeg_protocol::Digest(parsed.digest().map_or([0; 32], |digest| digest.0)),
            source: ImageSource::Registry,
        };
        if parsed.digest().is_none() {
            let sources = self.registries.sources(&parsed, None)?;
            let digest = sources.resolve(parsed.tag().unwrap_or("latest")).await;
            image.digest.0 = digest.map_err(|error| format!("image {reference:?}: {}", chain(&error)))?.0;
        }
        Ok(image)
    }

    /// Looks for an image off the event loop: after a power cut its layers are checked first.
    async fn look_up(&self, digest: Digest) -> Result<Option<skeg_images::Image>, skeg_images::StoreError> {
        let store = self.store.clone();
        let work = spawn_blocking(move || {
            let found = store.image(&digest)?;
            if found.is_some() {
                store.touch(&digest)?;
            }
            Ok(found)
        });
        work.await.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
    }

    fn sources(&self, image: &Image, pod: Option<&Pod>) -> Result<Sources, String> {
        match &image.source {
            ImageSource::Controller(repository) => {
                let endpoint =
                    self.controller.clone().ok_or("it is in the controller's registry; none is configured")?;
                Ok(Sources::one(Client::new(endpoint), repository))
            }
            ImageSource::Registry => {
                let reference: Reference = image.reference.parse().map_err(|error| chain(&error))?;
                let sources = self.registries.sources(&reference, pod)?;
                // The controller may reach what this device does not.
                let through = self.controller.clone().map(|controller| {
                    (Client::new(controller), format!("{}/{}", reference.registry(), reference.repository()))
                });
                Ok(sources.and_then(through))
            }
        }
    }

    /// An image that must be here.
    ///
    /// # Errors
    /// It is not, or can't be read.
    pub fn here(&self, image: &Image) -> Result<skeg_images::Image, String> {
        match self.store.image(&Digest(image.digest.0)) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(format!("image {:?} is no longer on this device", image.reference)),
            Err(error) => Err(format!("image {:?}: {}", image.reference, chain(&error))),
        }
    }

    /// The health check of an image as a probe, where it has one.
    pub fn check(&self, image: &Image) -> Option<Probe> {
        let found = self.store.image(&Digest(image.digest.0)).ok().flatten()?;
        ask::image_check(found.healthcheck.as_ref()?)
    }

    /// The signal that the image asks to be stopped with, where it names one that Linux has.
    pub fn stop_signal(&self, image: &Image) -> Option<rustix::process::Signal> {
        let found = self.store.image(&Digest(image.digest.0)).ok().flatten()?;
        let name = found.config.config().as_ref()?.stop_signal().clone()?;
        let long = if name.starts_with("SIG") { name.clone() } else { format!("SIG{name}") };
        let number = match name.parse::<i32>() {
            Ok(number) => number,
            Err(_) => long.parse::<nix::sys::signal::Signal>().ok()? as i32,
        };
        rustix::process::Signal::from_named_raw(number)
    }
}
