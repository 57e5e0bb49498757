#!/bin/sh
# Builds the Debian package of this checkout, which is built itself already, and prints its path.
#
# debhelper would build from a source package with every npm module packaged; dist/ has those that run
# inside. Only raw-socket, which is optional and has an addon, is taken along as it was built.
set -eu
umask 022
cd "$(dirname "$0")/.."

version=$(node -p 'require("./package.json").version')
architecture=$(dpkg --print-architecture)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/root
home=$root/usr/lib/vtep

# Times within are those of the last commit, so that the same source makes the same package, but for what V8
# compiled, in which there are hashes of its own.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

# what there is, and where it goes
mkdir -p "$home/build/Release" "$root/usr/bin" "$root/lib/systemd/system" \
  "$root/usr/lib/sysusers.d" "$root/usr/lib/tmpfiles.d" "$root/usr/share/doc/vtep" "$root/usr/share/vtep" \
  "$root/DEBIAN"
cp -a package.json dist systemd "$home"
find "$home/dist" -name '*.map' -delete
strip --strip-unneeded -o "$home/build/Release/vtep.node" build/Release/vtep.node
ln -s ../lib/vtep/dist/cli.js "$root/usr/bin/vtep"
mkdir -p "$root/usr/lib/cni" # where Debian's plugins are
ln -s ../vtep/dist/vtep-cni.js "$root/usr/lib/cni/vtep-cni"
cp systemd/*.service systemd/*.socket "$root/lib/systemd/system"
cp systemd/sysusers.conf "$root/usr/lib/sysusers.d/vtep.conf"
cp systemd/tmpfiles.conf "$root/usr/lib/tmpfiles.d/vtep.conf"
node dist/cli.js config example >"$root/usr/share/vtep/vtep.yaml" # of which postinst makes the configuration
cp -a monitoring "$root/usr/share/vtep"
cp -r README.md examples "$root/usr/share/doc/vtep"
cat LICENSE dist/LICENSES.txt >"$root/usr/share/doc/vtep/copyright"
rm "$home/dist/LICENSES.txt"

# with what builds it: for another Node it has to be built again
if [ -e node_modules/raw-socket/build/Release/raw.node ]; then
  mkdir "$home/node_modules"
  cp -a node_modules/raw-socket node_modules/nan "$home/node_modules"
  find "$home/node_modules/raw-socket/build" -type f ! -name raw.node -delete
  find "$home/node_modules/raw-socket/build" -name raw.node -exec strip --strip-unneeded {} +
  find "$home/node_modules" -type d -empty -delete
fi

# the libraries that the addon needs
mkdir "$stage/debian"
printf 'Source: vtep\n\nPackage: vtep\nArchitecture: any\n' >"$stage/debian/control"
(cd "$stage" && dpkg-shlibdeps --warnings=0 -Tsubstvars "$home/build/Release/vtep.node")
libraries=$(sed -n 's/^shlibs:Depends=//p' "$stage/substvars")

cat >"$root/DEBIAN/control" <<END
Package: vtep
Version: $version
Architecture: $architecture
Maintainer: The vtep authors <root@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: nodejs (>= 20.4), iproute2, systemd | systemd-standalone-sysusers, $libraries
Recommends: nftables
Section: net
Priority: optional
Description: VXLAN tunnel endpoint in user space
 A VXLAN tunnel endpoint (RFC 7348) over a TAP device. It joins the Layer 2 of
 several hosts over UDP, beside kernel VXLAN, Open vSwitch or a switch at the
 other end. It learns, keeps strangers out, and has a reason for every drop.
 .
 Debian 13 has the Node.js that it needs. That of Debian 12 is 18: install
 version 20 or newer from its makers first.
END
cp packaging/postinst packaging/prerm packaging/postrm "$root/DEBIAN"
(cd "$root" && find usr lib -type f -exec md5sum {} + | LC_ALL=C sort -k 2 >DEBIAN/md5sums)
chmod -R u=rwX,go=rX "$root"
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"

package=build/vtep_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
echo "$package"
