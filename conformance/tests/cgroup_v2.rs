//! A whole cluster on a kernel whose only cgroups are version 2: limits arrive, an out-of-memory kill is told as one,
//! figures are read, and nothing is left behind.

use std::time::Duration;

use keelson_conformance::testbed::{Programs, write_busybox_archive};
use keelson_conformance::vm::Vm;

/// Runs in the machine; its first failing command fails the test.
const SCRIPT: &str = r#"
keelson up --data-dir /k --node-name vm --wait 240
export KUBECONFIG=/k/admin.kubeconfig
keelson images import --data-dir /k /root/busybox.tar
kubectl create -f - <<POD
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: default}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: calm
    image: test.local/busybox:v1
    command: [sh, -c, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; sleep 3600"]
    resources: {limits: {cpu: 250m, memory: 64Mi}}
  - name: hog
    image: test.local/busybox:v1
    command: [sh, -c, "tail /dev/zero"]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 250m, memory: 32Mi}}
POD
kubectl wait '--for=jsonpath={.status.containerStatuses[1].state.terminated.reason}=OOMKilled' pod/p --timeout=120s
test "$(kubectl logs p -c calm | tr '\n' ' ')" = "67108864 25000 100000 "
test "$(kubectl get pod p -o 'jsonpath={.status.qosClass} {.status.containerStatuses[1].state.terminated.exitCode}')" = "Burstable 137"
pod=$(find /sys/fs/cgroup -name "pod$(kubectl get pod p -o 'jsonpath={.metadata.uid}')")
case "$pod" in */kubepods/burstable/pod*) ;; *) echo "the pod's cgroup is '$pod'"; exit 1;; esac
# The sum of the containers' limits.
test "$(cat $pod/memory.max)" = 100663296
test "$(cat $pod/cpu.max)" = "50000 100000"
kubectl get --raw /api/v1/nodes/vm/proxy/stats/summary | grep -o '"name":"calm".*' | head -c 2000 | grep -q '"cpu"'
kubectl delete pod p
test ! -e "$pod"
keelson down --purge --data-dir /k
test -z "$(find /sys/fs/cgroup -mindepth 1 -type d)"
test -z "$(grep keelson /proc/mounts)"
"#;

#[test]
fn a_cluster_runs_on_cgroup_v2() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let mut vm = Vm::new(&programs.kernel()).unwrap();
    vm.program(programs.binary(), "/bin/keelson").unwrap();
    vm.program(programs.kubectl(), "/bin/kubectl").unwrap();
    for program in [
        "/usr/bin/containerd",
        "/usr/bin/containerd-shim-runc-v2",
        "/usr/bin/ctr",
        "/usr/sbin/runc",
        "/usr/lib/cni/bridge",
        "/usr/lib/cni/host-local",
        "/usr/lib/cni/loopback",
        "/usr/lib/cni/portmap",
    ] {
        vm.program(program, program).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("busybox.tar");
    write_busybox_archive(&archive, "test.local/busybox:v1", &[]).unwrap();
    vm.file("/root/busybox.tar", &std::fs::read(archive).unwrap(), 0o644)
        .unwrap();
    vm.run(SCRIPT, Duration::from_secs(600)).unwrap();
}
