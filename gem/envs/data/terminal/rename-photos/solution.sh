cd ~/photos
for file in IMG_*_*.*; do
    name=${file#IMG_}
    folder=${name:0:4}/${name:4:2}
    mkdir -p "$folder"
    ending=$(echo "${name##*.}" | tr A-Z a-z)
    mv "$file" "$folder/${name:6:2}-${name:9:4}.$ending"
done
