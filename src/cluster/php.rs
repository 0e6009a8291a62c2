//! What nodes tell each other for PHP: where its gateways are, and whether it has workers.

use std::collections::{HashMap, HashSet};

use super::keys::Channel;
use super::redis::{Command, Reply};
use super::{Cluster, Unavailable};
use crate::id::LanAddress;

/// The field beside the addresses: a worker has been connected to some node.
const WORKERS: &str = "workers";

/// What the nodes know together of PHP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Php {
    /// Where gateways are that can be connected to, as `ip:port`, in no order: nodes, and PHP's own that have registered
    /// at one.
    pub gateways: Vec<String>,
    /// A worker has been connected to some node.
    pub had_workers: bool,
    /// What this node has to say was there already.
    pub is_told: bool,
}

impl Cluster {
    /// Looks, and makes known what this node has to say: its own gateways, and that it has had workers.
    ///
    /// A gateway is there as long as the node that made it known hears something: a process that has crashed does not.
    pub async fn php(&self, ours: &[String], had_workers: bool) -> Result<Php, Unavailable> {
        let (keys, connection) = (&self.shared.keys, self.shared.link.get()?);
        let run = self.shared.identity().run.clone();
        let looks = [keys.php(), keys.runs(), keys.lan()].map(Command::hgetall);
        let mut found = Vec::new();
        for reply in connection.pipeline(looks.into()).await? {
            found.push(reply?.pairs());
        }
        let [lan, runs, php] = [found.pop(), found.pop(), found.pop()].map(Option::unwrap_or_default);
        let known: HashMap<String, String> = php.into_iter().collect();

        let had_workers = had_workers || known.contains_key(WORKERS);
        let of_run: HashMap<String, LanAddress> = {
            let of_node: HashMap<String, LanAddress> =
                lan.into_iter().filter_map(|(lan, node)| Some((node, lan.parse().ok()?))).collect();
            runs.into_iter().filter_map(|(node, run)| Some((run, *of_node.get(&node)?))).collect()
        };
        let channels = of_run.values().map(|lan| keys.channel(&Channel::Node(*lan)));
        let heard = connection.call(Command::pubsub("NUMSUB").args(channels)).await?.list();
        let hear: HashSet<String> = heard
            .chunks(2)
            .filter(|pair| pair.get(1).is_some_and(|listeners| listeners.number() > 0))
            .filter_map(|pair| pair.first().cloned().and_then(Reply::text))
            .collect();
        let is_there = |owner: &String| {
            let lan = of_run.get(owner);
            lan.is_some_and(|lan| hear.contains(&keys.channel(&Channel::Node(*lan))))
        };

        // What this node has said may have been lost with Redis' data; what it does not say any more may stand there.
        let missing = ours.iter().filter(|address| known.get(*address) != Some(&run));
        let mut said: Vec<&str> = missing.flat_map(|address| [address.as_str(), run.as_str()]).collect();
        let is_told = said.is_empty();
        if had_workers && !known.contains_key(WORKERS) {
            said.extend([WORKERS, "1"]);
        }
        if !said.is_empty() {
            connection.call(Command::hset(keys.php()).args(said)).await?;
        }
        let stale = known.iter().filter(|(address, owner)| **owner == run && !ours.contains(address));
        let stale: Vec<&str> = stale.map(|(address, _)| address.as_str()).collect();
        if !stale.is_empty() {
            connection.call(Command::hdel(keys.php()).args(stale)).await?;
        }

        let others =
            known.iter().filter(|(address, owner)| !ours.contains(address) && **owner != run && is_there(owner));
        let others = others.map(|(address, _)| address.clone());
        Ok(Php { gateways: ours.iter().cloned().chain(others).collect(), had_workers, is_told })
    }
}
