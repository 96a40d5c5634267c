set -e
state=$GEM_SEED
draw() { # a number below $1, in $drawn
    state=$(((state * 1103515245 + 12345) % 2147483648))
    drawn=$((state / 65536 % $1))
}

mkdir photos
for n in {1..24}; do
    draw 3
    year=$((2022 + drawn))
    draw 12
    month=$((drawn + 1))
    draw 28
    day=$((drawn + 1))
    endings=(JPG jpg JPEG)
    draw 3
    printf -v name 'IMG_%d%02d%02d_%04d.%s' "$year" "$month" "$day" "$((n * 7))" "${endings[drawn]}"
    draw 100000
    echo "picture $drawn" > "photos/$name"
done
draw 1000
echo "plan $drawn" > "photos/IMG notes.txt"
echo "a copy $drawn" > "photos/copy of IMG_20240101_0001.JPG"
echo "a film $drawn" > "photos/VID_20240101_0001.MP4"
