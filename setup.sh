#!/bin/sh
# Brings a fresh clone to the point where `npm run demo` and `npm test` work: Debian packages,
# node_modules, build. Each step is skipped when there is nothing to do, so it may run every time.
set -eu
cd "$(dirname "$0")"

say() { echo "setup: $*"; }
fail() {
  echo "setup: $*" >&2
  exit 1
}

# What a step has in the temporary folder, removed also when it is interrupted.
scratch=
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

# command, the package that has it, what it is for. None of these packages starts a service.
needed='
g++      g++           compiles the addon
make     make          builds the addon (node-gyp)
python3  python3       runs node-gyp
ip       iproute2      draws hosts as network namespaces
bridge   iproute2      reads and writes the FDB of kernel VXLAN devices
nsenter  util-linux    enters network namespaces
setpriv  util-linux    ends a lab'"'"'s processes with it
ping     iputils-ping  pings through the tunnels
iperf3   iperf3        measures throughput
ethtool  ethtool       switches offloads on and off
tmux     tmux          is the terminal that vtep top is tested in
tshark   tshark        reads captures as Wireshark does
fish     fish          completes command lines
zsh      zsh           completes command lines
nft      nftables      marks and drops packets as routers do
iptables iptables      does so as older hosts do, both of its kinds
dpkg-shlibdeps dpkg-dev finds the libraries that the Debian package needs
/usr/lib/cni/host-local containernetworking-plugins gives out addresses, as CNI has it
podman   podman        runs containers through CNI
runc     runc          runs them where crun cannot
busybox  busybox-static is what runs in them
docker-compose docker-compose runs the example of several containers
unshare  util-linux    isolates a systemd of the lab'"'"'s own
systemd-analyze systemd boots in the lab, and judges the units
'

install_packages() {
  missing=
  while read -r command package purpose; do
    [ -n "$command" ] || continue
    command -v "$command" >/dev/null 2>&1 && continue
    say "$package is missing; it $purpose"
    case " $missing " in *" $package "*) ;; *) missing="$missing $package" ;; esac
  done <<END
$needed
END
  [ -n "$missing" ] || return 0

  install="apt-get install --yes --no-install-recommends$missing"
  command -v apt-get >/dev/null || fail "this is not Debian; install by hand:$missing"
  [ "$(id -u)" = 0 ] || fail "not root; run this first: sudo apt-get update && sudo $install"

  scratch=$(mktemp)
  say "$install"
  # The lists a machine has may be absent or out of date: only then are they fetched.
  if ! DEBIAN_FRONTEND=noninteractive $install </dev/null >"$scratch" 2>&1; then
    say "apt-get update"
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive $install; } </dev/null >"$scratch" 2>&1; then
      tail -n 20 "$scratch" >&2
      fail "could not install$missing"
    fi
  fi
  rm -f "$scratch"
  scratch=
}

# unpack DIRECTORY PURPOSE PACKAGE…: the packages' files, without installing them, which would start a service, now
# and at every boot. Only tests and comparisons need them, so nothing else ends when they cannot be had.
unpack() {
  target=$1
  purpose=$2
  shift 2
  if ! command -v apt-get >/dev/null; then
    say "this is not Debian: unpack to $target by hand: $*; it $purpose"
    return
  fi
  say "unpacking Debian's $1 to $target; it $purpose"
  scratch=$(mktemp -d)
  chmod 755 "$scratch" # for apt's own user
  rm -rf "$target" "$target.new"
  mkdir -p "$target.new"
  tree=$PWD/$target.new
  if (
    cd "$scratch" || exit
    apt-get download "$@" || { apt-get update && apt-get download "$@"; } || exit
    for file in *.deb; do dpkg-deb -x "$file" "$tree" || exit; done
  ) >"$scratch/log" 2>&1; then
    mv "$target.new" "$target" # whole or not at all
  else
    tail -n 20 "$scratch/log" >&2
    say "could not unpack $*: going on; what needs it fails until this can download it, if need be after: sudo apt-get update"
    rm -rf "$target.new"
  fi
  rm -rf "$scratch"
  scratch=
}

unpack_prometheus() {
  command -v prometheus >/dev/null && command -v promtool >/dev/null && return
  [ -e build/prometheus/usr/bin/promtool ] ||
    unpack build/prometheus "checks metrics, alerts and the dashboard" prometheus
}

unpack_docker() {
  [ -e build/docker/usr/sbin/dockerd ] ||
    unpack build/docker "runs containers on the network driver" docker.io containerd tini
}

unpack_openvswitch() {
  command -v ovs-vswitchd >/dev/null && return
  [ -e build/openvswitch/usr/lib/openvswitch-switch ] ||
    unpack build/openvswitch "is a VTEP of another make" openvswitch-switch openvswitch-common \
      libevent-2.1-7 libnuma1 libunbound8 libxdp1
}

install_modules() {
  if [ ! -e node_modules/.package-lock.json ] ||
    [ package-lock.json -nt node_modules/.package-lock.json ]; then
    say "npm ci"
    find_headers # npm builds the addon of raw-socket, which is optional
    npm ci --no-audit --no-fund --loglevel=error
  fi
}

# older_than RESULT SOURCE…: the result is missing, or a source is newer than it
older_than() {
  result=$1
  shift
  [ ! -e "$result" ] || [ -n "$(find "$@" -newer "$result" | head -n 1)" ]
}

# node-gyp downloads Node's headers unless told where they are; many installations bring them along.
find_headers() {
  case $(npm config get nodedir 2>/dev/null) in '' | undefined | null) ;; *) return ;; esac
  prefix=$(node -p 'require("node:path").resolve(process.execPath, "../..")')
  if [ -e "$prefix/include/node/node_api.h" ]; then export npm_config_nodedir="$prefix"; fi
}

build() {
  if older_than build/Release/vtep.node native binding.gyp; then
    say "building the addon"
    find_headers
    npm run --silent build:native
    touch build/Release/vtep.node # make leaves it alone when nothing that matters has changed
  fi
  if older_than dist/LICENSES.txt src package.json package-lock.json tsconfig.json packaging/bundle.mjs; then
    say "compiling TypeScript"
    npm run --silent build:ts
  fi
}

command -v node >/dev/null && command -v npm >/dev/null ||
  fail "Node.js 20.4 or newer, with npm, has to be installed first"
install_packages
unpack_prometheus
unpack_docker
unpack_openvswitch
install_modules
build
