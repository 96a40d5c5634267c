set -e
cp -r "$GEM_ORIGINAL/photos" "$TMPDIR/expected"
cd "$TMPDIR/expected"
for file in IMG_*_*.*; do
    name=${file#IMG_}
    mkdir -p "${name:0:4}/${name:4:2}"
    ending=${name##*.}
    mv "$file" "${name:0:4}/${name:4:2}/${name:6:2}-${name:9:4}.${ending,,}"
done
cd "$OLDPWD"
diff -r "$TMPDIR/expected" photos
